"""Goldens of the transformer: outputs of diffusers' WanTransformer3DModel for weights and inputs that both sides draw.

Weights and inputs are a pure function of (name, index), see `draw`; the Rust tests draw the same numbers, so only outputs
are stored. Nothing is left at its zero or one initialisation: norms, biases and modulation tables are drawn as well.

Run from the repository root: python xtask/goldens/transformer.py
"""

import json
import pathlib

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

OUT = pathlib.Path("crates/wan/tests/goldens/transformer")
MASK = (1 << 64) - 1


def draw(name: str, shape: tuple[int, ...], scale: float, offset: float = 0.0) -> torch.Tensor:
    """Uniform numbers in offset ± scale/2: splitmix64 of (FNV-1a of the name) + index, upper 24 bits. Exact in f32."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5)
    return torch.from_numpy((unit * np.float32(scale) + np.float32(offset)).reshape(shape))


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Matrices keep a unit gain; norms lie around one; biases and tables around zero, far from it."""
    if "norm" in name and name.endswith("weight"):
        return draw(name, shape, 1.0, 1.0)
    if len(shape) == 1 or "scale_shift_table" in name:
        return draw(name, shape, 0.6)
    return draw(name, shape, float(np.float32(3.0) / np.sqrt(np.float32(np.prod(shape[1:])))))


CASES = {
    "head12": dict(num_attention_heads=2, attention_head_dim=12, in_channels=4, text_dim=16, freq_dim=256, ffn_dim=32),
    "head32": dict(num_attention_heads=3, attention_head_dim=32, in_channels=4, text_dim=24, freq_dim=64, ffn_dim=80),
    "head128": dict(num_attention_heads=2, attention_head_dim=128, in_channels=16, text_dim=20, freq_dim=256, ffn_dim=96),
    "no_cross_norm": dict(num_attention_heads=2, attention_head_dim=12, in_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, cross_attn_norm=False),
    "head32_bf16": dict(num_attention_heads=3, attention_head_dim=32, in_channels=4, text_dim=24, freq_dim=64, ffn_dim=80),
}
FRAMES, HEIGHT, WIDTH = 3, 6, 10
# (timestep, real text rows, text rows with padding)
CALLS = [(999.0, 5, 12), (875.0, 1, 12), (437.0, 12, 12), (3.0, 0, 4)]


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for case, fields in CASES.items():
        config = dict(patch_size=(1, 2, 2), out_channels=fields["in_channels"], num_layers=2, rope_max_seq_len=32) | fields
        model = WanTransformer3DModel(**config).eval()
        state = {name: weight(name, tuple(p.shape)) for name, p in model.state_dict().items()}
        if case.endswith("bf16"):
            state = {name: p.to(torch.bfloat16).float() for name, p in state.items()}
        model.load_state_dict(state)
        latents = draw("latents", (1, fields["in_channels"], FRAMES, HEIGHT, WIDTH), 3.0)
        outputs = {}
        for index, (timestep, real, rows) in enumerate(CALLS):
            text = torch.zeros(1, rows, fields["text_dim"])
            text[:, :real] = draw(f"text.{index}", (1, real, fields["text_dim"]), 3.0)
            with torch.no_grad():
                velocity = model(latents, torch.tensor([timestep]), text, return_dict=False)[0]
            outputs[f"velocity.{index}"] = velocity[0].contiguous()
        save_file(outputs, OUT / f"{case}.safetensors")
        written = dict(model.config)
        (OUT / f"{case}.json").write_text(json.dumps(written | {"_class_name": "WanTransformer3DModel"}, indent=1) + "\n")
    calls = [dict(timestep=t, real_rows=real, rows=rows) for t, real, rows in CALLS]
    (OUT / "calls.json").write_text(json.dumps(dict(frames=FRAMES, height=HEIGHT, width=WIDTH, calls=calls), indent=1) + "\n")


if __name__ == "__main__":
    main()
