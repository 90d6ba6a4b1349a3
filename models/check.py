"""Checks that what training computes is what diffusers computes, and that the detector reads rendered clips.

Exits with an error if a check fails. Uses random weights; needs no trained files.
"""

import random

import torch

import data
import detect
import networks
import tokenizer
import video_vae


def relative_error(got, want):
    """Largest difference as a fraction of the largest value."""
    return ((got - want).abs().max() / want.abs().max()).item()


def check_transformer():
    """`velocity` against WanTransformer3DModel over 512 zero-padded rows."""
    words = tokenizer.build()
    model, text = networks.build_transformer(layers=3), networks.build_text_encoder(len(words))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    prompts = ["a red ball moving left on a black background", ""]
    latents, level = torch.randn(2, 16, 5, 8, 8), torch.tensor([0.913, 0.25])
    rows, bias = networks.encode_prompts(words, text, prompts)
    got = networks.velocity(model, latents, level, rows, bias, torch.arange(5))
    tokens = words(prompts, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    hidden = text(tokens.input_ids, tokens.attention_mask).last_hidden_state
    lengths = tokens.attention_mask.sum(1)
    padded = torch.stack([torch.cat([h[:n], h.new_zeros(512 - n, h.shape[1])]) for h, n in zip(hidden, lengths, strict=True)])
    want = model(hidden_states=latents, timestep=level * 1000, encoder_hidden_states=padded, return_dict=False)[0]
    return relative_error(got, want)


def check_rollout(blocks=5):
    """A block denoised after a rollout's commits against the same block in a teacher-forced sequence."""
    words = tokenizer.build()
    model, text = networks.build_transformer(layers=3), networks.build_text_encoder(len(words))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    rows, bias = networks.encode_prompts(words, text, ["a red ball moving left on a black background", ""])
    clean, noisy = torch.randn(2, 2, 16, blocks * networks.BLOCK, 8, 8)
    levels = torch.rand(2, blocks)
    want = networks.teacher_forced_velocity(model, clean[:, :, : -networks.BLOCK], noisy, levels, rows, bias)
    context, parts = networks.Context(), []
    for i in range(blocks):
        block = slice(i * networks.BLOCK, (i + 1) * networks.BLOCK)
        parts.append(networks.block_velocity(model, noisy[:, :, block], levels[:, i], rows, bias, context)[0])
        context.commit(networks.block_velocity(model, clean[:, :, block], torch.zeros(2), rows, bias, context)[1])
    return relative_error(torch.cat(parts, 2), want)


def check_autoencoder():
    """The whole-clip encoder and decoder against diffusers' chunked ones."""
    vae = video_vae.build().eval()
    pixels = torch.rand(1, 3, 13, 64, 64) * 2 - 1
    moments = video_vae.encode_moments(vae, pixels)
    encode_error = relative_error(moments, vae.encode(pixels).latent_dist.parameters)
    latents = moments[:, : video_vae.LATENT_CHANNELS]
    return encode_error, relative_error(
        video_vae.decode_whole(vae, latents).clamp(-1, 1), vae.decode(latents).sample)


def check_detector(clips=300, frames=81):
    """The fraction of rendered clips whose every attribute the detector reads right."""
    rng = random.Random(11)
    right = 0
    for i in range(clips):
        clip = data.sample_clip(rng, held_out=i % 2 == 1)
        right += all(detect.agreement(clip, detect.detect(data.render(clip, frames))).values())
    return right / clips


def check_two_shots(clips=20, frames=81, cut=41):
    """The fraction of rendered pairs of shots of which the detector reads both, whose captions the tokenizer knows."""
    words, rng, right = tokenizer.build(), random.Random(12), 0
    for i in range(clips):
        shots = data.sample_two_shots(rng, held_out=i % 2 == 1)
        video = data.render_two_shots(*shots, frames, cut)
        parts = video[:, :cut], video[:, cut:]
        seen = [detect.agreement(shot, detect.detect(part)) for shot, part in zip(shots, parts, strict=True)]
        known = words.unk_token_id not in words(data.two_shot_caption(rng, *shots)).input_ids
        right += known and all(all(verdict.values()) for verdict in seen)
    return right / clips


def main():
    torch.manual_seed(0)
    with torch.no_grad():
        transformer, rollout, detector = check_transformer(), check_rollout(), check_detector()
        encoder, decoder = check_autoencoder()
        shots = check_two_shots()
    print(f"transformer {transformer:.1e}, rollout {rollout:.1e}, encoder {encoder:.1e}, decoder {decoder:.1e}, detector {detector:.3f}, two shots {shots:.3f}")
    if max(transformer, rollout, encoder, decoder) > 1e-5 or min(detector, shots) < 0.99:
        raise SystemExit("a check failed")


if __name__ == "__main__":
    main()
