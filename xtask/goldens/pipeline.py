"""Golden of a whole run: a small random two-expert checkpoint in diffusers layout, and what WanPipeline makes of it.

The checkpoint itself is committed beside the expected latents and frames, so that the test starts from a prompt and a
directory as a user does. Run from the repository root:  python xtask/goldens/pipeline.py
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

OUT = Path("crates/engine/tests/goldens/pipeline")
PROMPT = "A  red &amp; blue ball\tmoves to the left — “slowly”, on a dark background."
NEGATIVE = "blurry, grey"
SEED, STEPS, FRAMES, HEIGHT, WIDTH = 1234, 8, 9, 32, 48
GUIDANCE_HIGH, GUIDANCE_LOW = 4.0, 3.0


def randomise(module, gain, generator):
    """Random everything: zeros and ones at the start of norms, biases and modulation hide mistakes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "gamma" not in name and "table" not in name and "norm" not in name:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * gain / fan_in**0.5)
            elif "gamma" in name or "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.1 * noise)


def tokenizer():
    words = "a red blue ball moves to the left slowly on dark background blurry grey & — “ ” \" , . -".split()
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: 3 + at for at, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def text_encoder(generator):
    config = UMT5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=32, relative_attention_max_distance=128,
    )
    model = UMT5EncoderModel(config).eval()
    randomise(model, 1.0, generator)
    return model


def transformer(generator):
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=32, ffn_dim=48, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    ).eval()
    randomise(model, 1.0, generator)
    return model


def vae(generator):
    model = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=torch.randn(16, generator=generator).mul(0.3).tolist(),
        latents_std=torch.rand(16, generator=generator).add(0.7).tolist(),
    ).eval()
    randomise(model, 0.8, generator)
    return model


def main():
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(20)
    pipeline = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(generator),
        transformer=transformer(generator),
        transformer_2=transformer(generator),
        vae=vae(generator),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
        ),
        boundary_ratio=0.875,
    )
    shutil.rmtree(OUT, ignore_errors=True)
    pipeline.save_pretrained(OUT / "checkpoint", safe_serialization=True)
    # What is on disk is what counts: a reader must not depend on how it was made.
    pipeline = WanPipeline.from_pretrained(OUT / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)

    def run(output_type):
        return pipeline(
            prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES,
            num_inference_steps=STEPS, guidance_scale=GUIDANCE_HIGH, guidance_scale_2=GUIDANCE_LOW,
            generator=torch.Generator("cpu").manual_seed(SEED), output_type=output_type,
        ).frames

    shape = (16, (FRAMES - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    noise = torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(SEED))[0]
    latents = run("latent")[0]
    frames = torch.from_numpy(run("np"))[0]
    print("latents", latents.std(), latents.abs().max(), "frames", frames.std(), frames.min(), frames.max())
    print("timesteps", pipeline.scheduler.timesteps.tolist())
    save_file(
        {"noise": noise, "latents": latents.contiguous(), "frames": frames.contiguous()}, OUT / "expected.safetensors"
    )
    request = dict(
        prompt=PROMPT, negative=NEGATIVE, seed=SEED, steps=STEPS, frames=FRAMES, width=WIDTH, height=HEIGHT,
        guidance_high=GUIDANCE_HIGH, guidance_low=GUIDANCE_LOW, shift=5.0,
    )
    (OUT / "request.json").write_text(json.dumps(request, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
