"""Golden of one forward pass under a block-causal mask: what passes block by block over cached keys and values must equal.

A clip of two blocks goes through diffusers' transformer at once; attention sees every frame up to the end of a query's own
block. Keys are rotated in time and space, as the model itself rotates them. Weights and latents are drawn as in
`transformer.py`. Run from the repository root:  python xtask/goldens/block_causal.py
"""

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from rollout import rotated
from transformer import CASES, HEIGHT, OUT, WIDTH, draw, weight

CASE, BLOCK, BLOCKS, TIMESTEP = "head32", 3, 2, 0.0
ROWS, REAL_ROWS = 12, 5


class BlockCausal:
    def __call__(self, attn, hidden_states, *_args, **_kwargs):
        frames, rows, columns = BLOCK * BLOCKS, HEIGHT // 2, WIDTH // 2
        q, k, v = (
            x.unflatten(2, (attn.heads, -1))
            for x in (attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states))
        )
        q, k = (rotated(x, range(frames), rows, columns) for x in (q, k))
        block = torch.arange(frames).repeat_interleave(rows * columns) // BLOCK
        mask = block[None, :] <= block[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def main():
    torch.set_grad_enabled(False)
    fields = CASES[CASE]
    config = dict(patch_size=(1, 2, 2), out_channels=fields["in_channels"], num_layers=2, rope_max_seq_len=32) | fields
    model = WanTransformer3DModel(**config).eval()
    model.load_state_dict({name: weight(name, tuple(p.shape)) for name, p in model.state_dict().items()})
    for block in model.blocks:
        block.attn1.set_processor(BlockCausal())
    latents = draw("clip", (1, fields["in_channels"], BLOCK * BLOCKS, HEIGHT, WIDTH), 3.0)
    text = torch.zeros(1, ROWS, fields["text_dim"])
    text[:, :REAL_ROWS] = draw("text.0", (1, REAL_ROWS, fields["text_dim"]), 3.0)
    velocity = model(latents, torch.tensor([TIMESTEP]), text, return_dict=False)[0][0]
    save_file({"velocity": velocity.contiguous()}, OUT / "block_causal.safetensors")
    print(velocity.shape, velocity.std().item())


if __name__ == "__main__":
    main()
