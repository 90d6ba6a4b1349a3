"""Golden of a video made block by block: the checkpoint of `pipeline.py` as if it had been trained causally.

The reference is diffusers' own transformer with another self-attention processor: it keeps every committed block's keys as
they were before rotary embedding and rotates the whole list of keys again for each block, where evanesce keeps keys rotated
in space and turns the query. Run from the repository root after pipeline.py:  python xtask/goldens/rollout.py
"""

import json
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from safetensors.torch import save_file

CHECKPOINT = Path("crates/engine/tests/goldens/pipeline/checkpoint")
OUT = Path("crates/engine/tests/goldens/rollout")
PROMPT, NEGATIVE = "a red ball moves to the left", "blurry, grey"
SEED, STEPS, FRAMES, HEIGHT, WIDTH = 77, 4, 41, 32, 48
GUIDANCE_HIGH, GUIDANCE_LOW, SHIFT, BOUNDARY = 4.0, 3.0, 5.0, 0.875
BLOCK, SINK, RECENT = 3, 2, 3
# every n-th row and column of the frames is stored
STRIDE = 4
SEED_STRIDE = 0x9E3779B97F4A7C15


def rotated(x, positions, rows, columns):
    """x [1, tokens, heads, d], frame by frame at `positions`, by the rotary formula in float64."""
    width = x.shape[-1]
    spatial = 2 * (width // 6)
    dims = (width - 2 * spatial, spatial, spatial)
    grid = torch.cartesian_prod(torch.tensor(positions), torch.arange(rows), torch.arange(columns)).double()
    angles = [grid[:, axis : axis + 1] * 10000.0 ** (-torch.arange(0, d, 2).double() / d) for axis, d in enumerate(dims)]
    turn = torch.polar(torch.ones(()).double(), torch.cat(angles, 1))[None, :, None]
    return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turn).flatten(-2).float()


class Remembering:
    """Self-attention of one block to itself and to what earlier blocks left in `kept` [(frame, key, value)]."""

    def __init__(self, state):
        self.state, self.kept = state, {}

    def __call__(self, attn, hidden_states, *_args, **_kwargs):
        state = self.state
        split = (attn.heads, -1)
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, split)
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, split)
        v = attn.to_v(hidden_states).unflatten(2, split)
        first = state["first"]
        sink = range(min(SINK, first))
        reach = [*sink, *range(max(len(sink), first - RECENT), first)]
        past = self.kept.setdefault(state["branch"], {})
        own = list(range(len(reach), len(reach) + BLOCK)) if state["window"] else list(range(first, first + BLOCK))
        places = (list(range(len(reach))) if state["window"] else reach) + own
        keys = torch.cat([past[f][0] for f in reach] + [k], 1)
        values = torch.cat([past[f][1] for f in reach] + [v], 1)
        if state["commit"]:
            per_frame = k.shape[1] // BLOCK
            for at in range(BLOCK):
                span = slice(at * per_frame, (at + 1) * per_frame)
                past[first + at] = (k[:, span], v[:, span])
        rows, columns = HEIGHT // 16, WIDTH // 16
        q, keys = rotated(q, own, rows, columns), rotated(keys, places, rows, columns)
        out = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def roll(pipeline, window):
    """Latents [16, T, h, w] of the whole video."""
    state = {"window": window, "commit": False}
    for expert in (pipeline.transformer, pipeline.transformer_2):
        for block in expert.blocks:
            block.attn1.set_processor(Remembering(state))
    texts = [pipeline._get_t5_prompt_embeds(text, max_sequence_length=512) for text in (PROMPT, NEGATIVE)]
    shape = (1, 16, BLOCK, HEIGHT // 8, WIDTH // 8)
    wanted = (FRAMES - 1) // 4 + 1
    parts = []

    def velocity(x, timestep):
        high = timestep >= BOUNDARY * 1000 if not state["commit"] else state["high"]
        expert, guidance = (pipeline.transformer, GUIDANCE_HIGH) if high else (pipeline.transformer_2, GUIDANCE_LOW)
        out = []
        for state["branch"], text in enumerate(texts):
            out.append(expert(x, torch.tensor([float(timestep)]), text, return_dict=False)[0])
        return out[1] + guidance * (out[0] - out[1])

    for number in range(-(-wanted // BLOCK)):
        state |= {"first": number * BLOCK, "commit": False}
        generator = torch.Generator().manual_seed((SEED + number * SEED_STRIDE) % 2**64)
        x = torch.randn(shape, generator=generator)
        scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=SHIFT)
        scheduler.set_timesteps(STEPS)
        for timestep in scheduler.timesteps:
            x = scheduler.step(velocity(x, timestep), timestep, x, return_dict=False)[0]
        parts.append(x)
        state["commit"] = True
        for state["high"] in (False, True):
            velocity(x, 0)
    return torch.cat(parts, 2)[0, :, :wanted].contiguous()


def main():
    torch.set_grad_enabled(False)
    pipeline = WanPipeline.from_pretrained(CHECKPOINT)
    OUT.mkdir(parents=True, exist_ok=True)
    latents = {name: roll(pipeline, name == "window") for name in ("window", "absolute")}
    print({name: (x.std().item(), x.abs().max().item()) for name, x in latents.items()})
    print("they differ by", (latents["window"] - latents["absolute"]).abs().amax((0, 2, 3)).tolist())
    statistics = [torch.tensor(numbers).view(1, 16, 1, 1, 1) for numbers in (pipeline.vae.config.latents_std, pipeline.vae.config.latents_mean)]
    frames = pipeline.vae.decode(latents["window"][None] * statistics[0] + statistics[1]).sample[0]
    frames = (frames / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)[:, ::STRIDE, ::STRIDE].contiguous()
    save_file(latents | {"frames": frames}, OUT / "expected.safetensors")
    request = dict(
        prompt=PROMPT, negative=NEGATIVE, seed=SEED, steps=STEPS, frames=FRAMES, width=WIDTH, height=HEIGHT,
        guidance_high=GUIDANCE_HIGH, guidance_low=GUIDANCE_LOW, shift=SHIFT,
        stride=STRIDE,
        causal=dict(block_frames=BLOCK, sink_frames=SINK, recent_frames=RECENT),
    )
    (OUT / "request.json").write_text(json.dumps(request, indent=1) + "\n")


if __name__ == "__main__":
    main()
