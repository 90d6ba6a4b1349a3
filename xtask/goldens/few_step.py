"""Goldens of few-step videos made block by block, from checkpoints as FastVideo and Self-Forcing publish them.

Weights are the random ones of `pipeline.py`; the configurations are written as those projects write them, the `.pt` of
Self-Forcing by torch.save. The reference is diffusers' transformer with a key-value cache that rolls as theirs do
(`CausalWanSelfAttention`: roped or raw keys, sinks, a window of `local_attn_size` frames) under the loop of FastVideo's
`CausalDMDDenosingStage` and Self-Forcing's `CausalInferencePipeline`, in f32. Two things are ours: noise (a block's first
noise is that of `seed + block * stride`, later noise is Philox), and text, whose keys and values each expert makes itself.

Run from the repository root after pipeline.py:  python xtask/goldens/few_step.py
"""

import json
import re
import shutil
from pathlib import Path

import numpy
import torch
from diffusers import WanPipeline
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file

from checkpoint import official_text_names, official_transformer_names
from rollout import rotated

CHECKPOINT = Path("crates/engine/tests/goldens/pipeline/checkpoint")
OUT = Path("crates/engine/tests/goldens/few_step")
PROMPT = "a red ball moves to the left"
SEED, FRAMES, HEIGHT, WIDTH = 99, 41, 32, 48
SEED_STRIDE = 0x9E3779B97F4A7C15
TWO_EXPERT_STEPS, ONE_EXPERT_STEPS = [1000, 850, 700, 550, 350, 275, 200, 125], [1000, 750, 500, 250]
BLOCK, BOUNDARY = 3, 0.875


def philox(counter, key):
    """Philox4x32-10 of `counter` [n, 4] and `key` (2), all uint32; numpy has other widths only."""
    c, k = [counter[:, at].astype(numpy.uint64) for at in range(4)], [numpy.uint64(word) for word in key]
    low = numpy.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = numpy.uint64(0xD2511F53) * c[0], numpy.uint64(0xCD9E8D57) * c[2]
        c = [(b >> numpy.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> numpy.uint64(32)) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + numpy.uint64(0x9E3779B9)) & low, (k[1] + numpy.uint64(0xBB67AE85)) & low]
    return numpy.stack(c, 1)


def step_noise(seed, block, step, shape):
    numbers = int(numpy.prod(shape))
    places = numpy.arange(-(-numbers // 4), dtype=numpy.uint64)
    counter = numpy.stack([places, places * 0 + block, places * 0 + step, places * 0], 1).astype(numpy.uint64)
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    uniform = (words >> numpy.uint64(9)).astype(numpy.float64) / 2**23
    first, second = uniform[:, 0::2].reshape(-1), uniform[:, 1::2].reshape(-1)
    radius, angle = numpy.sqrt(-2 * numpy.log(1 - first)), 2 * numpy.pi * second
    normal = numpy.stack([radius * numpy.cos(angle), radius * numpy.sin(angle)], 1).reshape(-1)
    return torch.from_numpy(normal[:numbers]).float().view(shape)


class Table:
    """`SelfForcingFlowMatchScheduler(num_inference_steps=1000, sigma_min=0.0, extra_one_step=True)`."""

    def __init__(self, shift):
        sigmas = torch.linspace(1.0, 0.0, 1001)[:-1]
        self.sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        self.timesteps = self.sigmas * 1000

    def warped(self, steps):
        return torch.cat((self.timesteps, torch.tensor([0.0])))[1000 - torch.tensor(steps)]

    def sigma(self, timestep):
        return self.sigmas[torch.argmin((self.timesteps - timestep).abs())].double()


class RollingCache:
    """Self-attention of one layer; keys and values in one list of frames, from which the oldest leave but for sinks."""

    def __init__(self, state):
        self.state, self.past = state, []

    def __call__(self, attn, hidden_states, *_args, **_kwargs):
        state, split = self.state, (attn.heads, -1)
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, split)
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, split)
        v = attn.to_v(hidden_states).unflatten(2, split)
        frames, rows, columns = state["frames"], HEIGHT // 16, WIDTH // 16
        own = [(state["first"] + at, *(x.unflatten(1, (frames, -1))[:, at] for x in (k, v))) for at in range(frames)]
        past, sink = self.past, state["sink"]
        excess = max(len(past) + frames - state["window"], 0)
        kept = past[:sink] + past[sink + excess :]
        everything = kept + own
        if state["relative"]:
            positions = list(range(len(everything)))
        else:
            positions = [frame for frame, _, _ in everything]
        keys, values = (torch.cat([entry[at] for entry in everything], 1) for at in (1, 2))
        if state["commit"]:
            self.past = everything
        q = rotated(q, positions[-frames:], rows, columns)
        keys = rotated(keys, positions, rows, columns)
        out = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def roll(pipeline, experts, steps, shift, lengths, window, sink, relative, shared=False, boundary_context=False):
    """Latents [16, T, h, w] of a whole video; `experts` are high and low, or one."""
    state = dict(window=window, sink=sink, relative=relative, commit=False)
    common = [RollingCache(state) for _ in experts[0].blocks]
    for expert in experts:
        for block, cache in zip(expert.blocks, common):
            block.attn1.set_processor(cache if shared else RollingCache(state))
    text = pipeline._get_t5_prompt_embeds(PROMPT, max_sequence_length=512)
    table = Table(shift)
    timesteps = table.warped(steps)
    two = len(experts) == 2
    boundary = BOUNDARY * 1000
    high = int((timesteps >= boundary).sum()) if two else 0
    wanted, first, parts = (FRAMES - 1) // 4 + 1, 0, []

    def velocity(expert, x, timestep):
        return expert(x, torch.tensor([float(timestep)]), text, return_dict=False)[0]

    for number, frames in enumerate(lengths):
        state |= {"first": first, "frames": frames, "commit": False}
        shape = (1, 16, frames, HEIGHT // 8, WIDTH // 8)
        x = torch.randn(shape, generator=torch.Generator().manual_seed((SEED + number * SEED_STRIDE) % 2**64))
        for at, timestep in enumerate(timesteps):
            expert = experts[0] if at < high else experts[-1]
            sigma = table.sigma(timestep)
            v = velocity(expert, x, timestep).double()
            met = table.sigma(torch.tensor(boundary)) if at < high else 0.0
            led = (x.double() - (sigma - met) * v).float()
            if at + 1 == len(timesteps) or at + 1 == high:
                x = led
                if at + 1 == high:
                    x_b = led
                continue
            following = table.sigma(timesteps[at + 1])
            noise = step_noise(SEED, number, at, shape)
            if at + 1 < high:
                alpha = (1 - following) / (1 - met)
                beta = torch.sqrt(following**2 - (alpha * met) ** 2)
                x = (alpha * led.double() + beta * noise.double()).float()
            else:
                x = ((1 - following) * led.double() + following * noise.double()).float()
        parts.append(x)
        state["commit"] = True
        velocity(experts[-1], x, 0)
        if two and not shared:
            velocity(experts[0], x_b if boundary_context else x, 0)
        first += frames
    return torch.cat(parts, 2)[0, :, :wanted].contiguous()


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_fastvideo(folder, policy):
    """The three configurations that differ from those of the bidirectional checkpoint."""
    index = json.loads((CHECKPOINT / "model_index.json").read_text())
    index |= {"_class_name": "WanCausalDMDPipeline", "scheduler": ["diffusers", "SelfForcingFlowMatchScheduler"]}
    for part in ("transformer", "transformer_2"):
        index[part] = ["diffusers", "CausalWanTransformer3DModel"]
        config = json.loads((CHECKPOINT / part / "config.json").read_text())
        config |= {"_class_name": "CausalWanTransformer3DModel", "num_frames_per_block": BLOCK, "sliding_window_num_frames": 21}
        config |= {"local_attn_size": 7, "sink_size": 1, "rope_cache_policy": policy}
        write_json(folder / part / "config.json", config)
    write_json(folder / "model_index.json", index)
    scheduler = {"_class_name": "SelfForcingFlowMatchScheduler", "_diffusers_version": "0.33.1", "extra_one_step": True}
    scheduler |= {"inverse_timesteps": False, "num_inference_steps": 1000, "num_train_timesteps": 1000, "reverse_sigmas": False}
    scheduler |= {"shift": 12.0, "sigma_max": 1.0, "sigma_min": 0.0, "training": True}
    write_json(folder / "scheduler/scheduler_config.json", scheduler)


def write_self_forcing(folder, pipeline):
    """Wan 2.1's directory with the `.pt` of a training run in it."""
    config = pipeline.transformer.config
    official = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": config.num_attention_heads * config.attention_head_dim,
        "eps": config.eps, "ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim, "in_dim": config.in_channels, "model_type": "t2v",
        "num_heads": config.num_attention_heads, "num_layers": config.num_layers, "out_dim": config.out_channels, "text_len": 512,
        "text_dim": config.text_dim,
    }
    write_json(folder / "config.json", official)
    names = {}
    for name in official_transformer_names(config.num_layers):
        (names[name],) = convert_wan_transformer_to_diffusers({name: torch.zeros(1)})

    def state(model, prefix, dtype):
        weights = model.state_dict()
        return {f"{prefix}{name}": weights[ours].to(dtype).clone() for name, ours in names.items()}

    # Averaged weights come without wrappers, those of the module itself with them; the averaged ones are to be used.
    torch.save(
        {
            "generator": state(pipeline.transformer_2, "model._fsdp_wrapped_module.", torch.bfloat16),
            "generator_ema": state(pipeline.transformer, "model.", torch.float32),
        },
        folder / "self_forcing_dmd.pt",
    )
    text = pipeline.text_encoder.state_dict()
    pairs = official_text_names(pipeline.text_encoder.config.num_layers)
    torch.save({name: text[ours].clone() for name, ours in pairs.items()}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    shutil.copy(CHECKPOINT / "text_encoder/config.json", folder / "models_t5_umt5-xxl-enc-bf16.json")
    vae = pipeline.vae.state_dict()
    depth = pipeline.vae.config.num_res_blocks
    torch.save({official_vae_name(ours, depth): tensor.clone() for ours, tensor in vae.items()}, folder / "Wan2.1_VAE.pth")
    shutil.copy(CHECKPOINT / "vae/config.json", folder / "Wan2.1_VAE.json")
    (folder / "google/umt5-xxl").mkdir(parents=True)
    shutil.copy(CHECKPOINT / "tokenizer/tokenizer.json", folder / "google/umt5-xxl/tokenizer.json")


def official_vae_name(name, res_blocks):
    """A tensor's name in Wan2.1_VAE.pth, after the order in which `vae2_1.py` makes its modules."""
    stage = res_blocks + 2

    def up(match):
        level, rest = int(match[1]), match[2]
        block = rest.removeprefix("resnets.").split(".")[0]
        index = level * stage + (int(block) if rest.startswith("resnets.") else stage - 1)
        return f"decoder.upsamples.{index}." + rest.split(".", 2)[2]

    for half in ("encoder", "decoder"):
        name = re.sub(rf"^{half}\.conv_in\.", f"{half}.conv1.", name)
        name = re.sub(rf"^{half}\.norm_out\.", f"{half}.head.0.", name)
        name = re.sub(rf"^{half}\.conv_out\.", f"{half}.head.2.", name)
        for ours, theirs in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
            name = name.replace(f"{half}.mid_block.{ours}.", f"{half}.middle.{theirs}.")
    name = re.sub(r"^quant_conv\.", "conv1.", name)
    name = re.sub(r"^post_quant_conv\.", "conv2.", name)
    name = name.replace("encoder.down_blocks.", "encoder.downsamples.")
    name = re.sub(r"^decoder\.up_blocks\.(\d+)\.(.*)$", up, name)
    for ours, theirs in (("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"), ("conv2", "residual.6")):
        name = re.sub(rf"^((?:en|de)coder\.(?:down|up)samples\.\d+|(?:en|de)coder\.middle\.\d)\.{ours}\.", rf"\1.{theirs}.", name)
    return name.replace(".conv_shortcut.", ".shortcut.")


def main():
    torch.set_grad_enabled(False)
    pipeline = WanPipeline.from_pretrained(CHECKPOINT)
    shutil.rmtree(OUT, ignore_errors=True)
    two, one = [pipeline.transformer, pipeline.transformer_2], [pipeline.transformer]
    lengths = [1, 3, 3, 3, 3]
    causal = dict(steps=TWO_EXPERT_STEPS, shift=12.0, lengths=lengths, window=7, sink=1)
    latents = dict(
        fastvideo=roll(pipeline, two, **causal, relative=False),
        relativistic=roll(pipeline, two, **causal, relative=True),
        shared=roll(pipeline, two, **causal, relative=False, shared=True),
        boundary=roll(pipeline, two, **causal, relative=False, boundary_context=True),
        self_forcing=roll(pipeline, one, ONE_EXPERT_STEPS, 5.0, [3, 3, 3, 3], window=21, sink=0, relative=False),
    )
    for name, x in latents.items():
        distance = (x - latents["fastvideo"]).norm() / latents["fastvideo"].norm()
        print(name, "deviation", x.std().item(), "most", x.abs().max().item(), "from fastvideo", distance.item())
    print("timesteps", Table(12.0).warped(TWO_EXPERT_STEPS).tolist())
    for policy in ("absolute", "relativistic"):
        write_fastvideo(OUT / policy, policy)
    (OUT / "self_forcing").mkdir()
    write_self_forcing(OUT / "self_forcing", pipeline)
    save_file(latents | {"noise": step_noise(SEED, 2, 1, (1001,))}, OUT / "expected.safetensors")
    write_json(OUT / "request.json", dict(prompt=PROMPT, seed=SEED, frames=FRAMES, width=WIDTH, height=HEIGHT))
    for file in OUT.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


if __name__ == "__main__":
    main()
