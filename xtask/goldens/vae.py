"""Goldens of the VAE: what diffusers' AutoencoderKLWan decodes and encodes with weights and inputs that both sides draw.

Weights and inputs are a pure function of (name, index), see `draw` in transformer.py; the Rust tests draw the same numbers, so only outputs
are stored. `names.json` pairs every tensor name of the official checkpoint with diffusers' name and shape.

Run from the repository root: python xtask/goldens/vae.py
"""

import json
import pathlib

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from transformer import draw, weight as parameter

OUT = pathlib.Path("crates/wan/tests/goldens/vae")


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Gammas lie around one; the rest is drawn as for the transformer."""
    return draw(name, shape, 1.0, 1.0) if name.endswith("gamma") else parameter(name, shape)


# name: (config, latent frames, latent height, latent width)
CASES = {
    "thin": (dict(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1), 3, 4, 4),
    "wide": (dict(base_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=2), 5, 3, 5),
    "early": (dict(base_dim=4, dim_mult=[1, 2, 2, 4], num_res_blocks=1, temperal_downsample=[True, True, False]), 3, 3, 2),
    "halves": (dict(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, decoder_base_dim=6, z_dim=4), 2, 1, 2),
}


def run(case: str, fields: dict, frames: int, height: int, width: int) -> None:
    z_dim = fields.get("z_dim", 16)
    mean = draw(f"{case}.mean", (z_dim,), 2.0)
    std = draw(f"{case}.std", (z_dim,), 3.0, 2.0)
    model = AutoencoderKLWan(**fields, latents_mean=mean.tolist(), latents_std=std.tolist()).eval()
    model.load_state_dict({name: weight(name, tuple(t.shape)) for name, t in model.state_dict().items()})
    mean, scale = (v.view(1, -1, 1, 1, 1) for v in (mean, 1.0 / std))
    latents = draw(f"{case}.latents", (1, z_dim, frames, height, width), 4.0)
    pictures = draw(f"{case}.pictures", (1, 4 * (frames - 1) + 1, 8 * height, 8 * width, 3), 2.0)
    with torch.no_grad():
        decoded = model.decode(latents / scale + mean).sample
        encoded = (model.encode(pictures.permute(0, 4, 1, 2, 3)).latent_dist.mode() - mean) * scale
    clamped = (decoded.abs() == 1.0).float().mean().item()
    print(f"{case}: decoded std {decoded.std():.3f} clamped {clamped:.3f}, encoded std {encoded.std():.3f}")
    assert clamped < 0.6 and 0.05 < encoded.std() < 50
    outputs = {"decoded": decoded[0].permute(1, 2, 3, 0), "encoded": encoded[0]}
    save_file({name: t.contiguous() for name, t in outputs.items()}, OUT / f"{case}.safetensors")
    config = {key: value for key, value in model.config.items() if key != "_use_default_values"}
    (OUT / f"{case}.json").write_text(json.dumps(config) + "\n")


def official_names(levels: int = 4, res_blocks: int = 2) -> list[str]:
    """Tensor names of Wan2.1_VAE.pth, after the modules of the official vae2_1.py in their order."""

    def conv(prefix: str) -> list[str]:
        return [f"{prefix}.weight", f"{prefix}.bias"]

    def residual(prefix: str, shortcut: bool) -> list[str]:
        body = [f"{prefix}.residual.0.gamma", *conv(f"{prefix}.residual.2")]
        body += [f"{prefix}.residual.3.gamma", *conv(f"{prefix}.residual.6")]
        return body + (conv(f"{prefix}.shortcut") if shortcut else [])

    def middle(prefix: str) -> list[str]:
        attention = [f"{prefix}.1.norm.gamma", *conv(f"{prefix}.1.to_qkv"), *conv(f"{prefix}.1.proj")]
        return residual(f"{prefix}.0", False) + attention + residual(f"{prefix}.2", False)

    def stack(prefix: str, blocks: int, changing: set[int], temporal: set[int]) -> list[str]:
        names, index = [], 0
        for level in range(levels):
            for block in range(blocks):
                names += residual(f"{prefix}.{index}", block == 0 and level in changing)
                index += 1
            if level != levels - 1:
                names += conv(f"{prefix}.{index}.resample.1")
                names += conv(f"{prefix}.{index}.time_conv") if level in temporal else []
                index += 1
        return names

    names = conv("encoder.conv1") + stack("encoder.downsamples", res_blocks, {1, 2}, {1, 2}) + middle("encoder.middle")
    names += ["encoder.head.0.gamma", *conv("encoder.head.2"), *conv("conv1"), *conv("conv2")]
    names += conv("decoder.conv1") + middle("decoder.middle")
    names += stack("decoder.upsamples", res_blocks + 1, {1}, {0, 1})
    return names + ["decoder.head.0.gamma", *conv("decoder.head.2")]


def names() -> None:
    with torch.device("meta"):
        expected = AutoencoderKLWan().state_dict()
    pairs = {}
    for official in official_names():
        (canonical,) = convert_wan_vae_to_diffusers({official: None})
        pairs[official] = [canonical, list(expected[canonical].shape)]
    assert {canonical for canonical, _ in pairs.values()} == set(expected), "names differ from diffusers'"
    lines = ",\n".join(f" {json.dumps(official)}: {json.dumps(pair)}" for official, pair in pairs.items())
    (OUT / "names.json").write_text("{\n" + lines + "\n}\n")


def main() -> None:
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)
    for case, (fields, *size) in CASES.items():
        run(case, fields, *size)
    names()


if __name__ == "__main__":
    main()
