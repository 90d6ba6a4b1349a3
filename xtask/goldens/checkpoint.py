"""Checkpoint directories as other programs write them: the official layout by torch.save and safetensors, the
configuration files of the diffusers layout by diffusers and transformers.

Weights are drawn by name (see `transformer.py`), under the canonical name with the component in front, so that the Rust
tests know every number. Official names are checked against diffusers' own converters.

Run from the repository root: python xtask/goldens/checkpoint.py
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import UMT5Config, UMT5EncoderModel

from transformer import weight
from vae import official_names as official_vae_names

OUT = pathlib.Path("crates/wan/tests/goldens/checkpoint")
TRANSFORMER = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
    freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=1024,
)
TEXT = dict(
    vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, relative_attention_num_buckets=32,
    relative_attention_max_distance=128, feed_forward_proj="gated-gelu", dropout_rate=0.0,
)
VAE = dict(
    base_dim=2, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True],
    latents_mean=[0.5, -0.25, 0.125, 0.0], latents_std=[2.0, 1.5, 1.25, 1.0],
)
LINEAR = ("weight", "bias")


def official_transformer_names(layers: int) -> list[str]:
    """Tensor names of the official `wan/modules/model.py`."""
    stems = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    stems += ["time_projection.1", "head.head"]
    names = ["head.modulation"] + [f"{stem}.{part}" for stem in stems for part in LINEAR]
    for layer in range(layers):
        for attention in ("self_attn", "cross_attn"):
            names += [f"blocks.{layer}.{attention}.{x}.{part}" for x in "qkvo" for part in LINEAR]
            names += [f"blocks.{layer}.{attention}.norm_{x}.weight" for x in "qk"]
        names += [f"blocks.{layer}.{stem}.{part}" for stem in ("norm3", "ffn.0", "ffn.2") for part in LINEAR]
        names.append(f"blocks.{layer}.modulation")
    return names


def official_text_names(layers: int) -> dict[str, str]:
    """Official and transformers' tensor names of the encoder (`wan/modules/t5.py`)."""
    names = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for layer in range(layers):
        ours, theirs = f"blocks.{layer}", f"encoder.block.{layer}"
        for x in "qkvo":
            names[f"{ours}.attn.{x}.weight"] = f"{theirs}.layer.0.SelfAttention.{x}.weight"
        names[f"{ours}.pos_embedding.embedding.weight"] = f"{theirs}.layer.0.SelfAttention.relative_attention_bias.weight"
        for official, canonical in (("gate.0", "wi_0"), ("fc1", "wi_1"), ("fc2", "wo")):
            names[f"{ours}.ffn.{official}.weight"] = f"{theirs}.layer.1.DenseReluDense.{canonical}.weight"
        for norm in (1, 2):
            names[f"{ours}.norm{norm}.weight"] = f"{theirs}.layer.{norm - 1}.layer_norm.weight"
    return names


def drawn(prefix: str, shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: weight(f"{prefix}.{name}", tuple(shape)).to(dtype) for name, shape in shapes.items()}


def shapes_of(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def write_json(path: pathlib.Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def save_sharded(folder: pathlib.Path, state: dict[str, torch.Tensor]) -> None:
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: state[name].contiguous() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "diffusion_pytorch_model.safetensors.index.json", dict(metadata=dict(total_size=0), weight_map=weight_map))


def write_official(folder: pathlib.Path, transformer: dict, text: dict, vae: dict) -> None:
    config = {
        "_class_name": "WanModel", "_diffusers_version": "0.33.0", "dim": 24, "eps": 1e-06, "ffn_dim": 32, "freq_dim": 32,
        "in_dim": 4, "model_type": "t2v", "num_heads": 2, "num_layers": 2, "out_dim": 4, "text_len": 512, "text_dim": 16,
    }
    names = official_transformer_names(2)
    canonical = {}
    for name in names:
        (canonical[name],) = convert_wan_transformer_to_diffusers({name: torch.zeros(1)})
    assert sorted(canonical.values()) == sorted(transformer)
    for part, prefix, dtype in (("high_noise_model", "high", torch.bfloat16), ("low_noise_model", "low", torch.float32)):
        state = drawn(prefix, transformer, dtype)
        write_json(folder / part / "config.json", config)
        save_sharded(folder / part, {name: state[canonical[name]] for name in names})
    state = drawn("text", text, torch.bfloat16)
    torch.save({name: state[ours] for name, ours in official_text_names(2).items()}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    write_json(folder / "models_t5_umt5-xxl-enc-bf16.json", TEXT)
    state = drawn("vae", vae, torch.float16)
    pairs = {name: next(iter(convert_wan_vae_to_diffusers({name: None}))) for name in official_vae_names()}
    assert sorted(pairs.values()) == sorted(vae)
    torch.save({name: state[ours] for name, ours in pairs.items()}, folder / "Wan2.1_VAE.pth")
    write_json(folder / "Wan2.1_VAE.json", VAE)
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "circle"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "google/umt5-xxl").mkdir(parents=True)
    tokenizer.save(str(folder / "google/umt5-xxl/tokenizer.json"))


def write_diffusers_configs(folder: pathlib.Path, models: dict) -> None:
    for part, model in models.items():
        model.save_pretrained(folder / part)
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
    index = {"_class_name": "WanPipeline", "_diffusers_version": "0.42.1", "boundary_ratio": 0.875, "expand_timesteps": False}
    for part, model in models.items():
        library = type(model).__module__.split(".")[0]
        index[part] = [library, type(model).__name__]
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    index["transformer_2"] = index["transformer"]
    index["evanesce"] = {"defaults": {"size": [64, 48], "frames": 17, "fps": 8, "steps": 12, "guidance_high": 3.5, "guidance_low": 2.5, "shift": 5.0, "negative_prompt": "blurry"}}
    write_json(folder / "model_index.json", index)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    transformer = WanTransformer3DModel(**TRANSFORMER)
    text = UMT5EncoderModel(UMT5Config(**TEXT))
    vae = AutoencoderKLWan(**VAE)
    text_shapes = {name: shape for name, shape in shapes_of(text).items() if name != "encoder.embed_tokens.weight"}
    write_official(OUT / "official", shapes_of(transformer), text_shapes, shapes_of(vae))
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    models = dict(transformer=transformer, transformer_2=transformer, text_encoder=text, vae=vae, scheduler=scheduler)
    write_diffusers_configs(OUT / "diffusers", models)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(OUT / "euler")
    for file in OUT.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


if __name__ == "__main__":
    main()
