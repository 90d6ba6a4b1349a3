"""Turns rendered clips into normalised latents on disk, in chunks that the trainer picks up as they appear.

Each chunk is `latents-NNNNN.safetensors` (f16, [clips, 16, 15, 8, 8]) with a JSON sidecar that says what each clip shows;
`wordless-NNNNN.safetensors` are of clips that are shown without a caption.
Clips are 57 frames, 15 latent frames: every motion repeats after 8 latent frames and the encoder has forgotten a clip's
beginning after 7, so a clip of any length follows from these (see `train.LatentPool`). A chunk depends only on its
number, so several processes may share the work and a run can be resumed.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import data
import video_vae


def encode_chunk(encoder, vae, clips, frames):
    """Latents of one chunk."""
    mean, std = video_vae.latent_statistics(vae)
    latents = []
    for clip in clips:
        moments = encoder(data.render(clip, frames)[None].contiguous(memory_format=torch.channels_last_3d))
        latents.append((moments[:, : vae.config.z_dim] - mean) / std)
    return torch.cat(latents).half()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", required=True, help="directory of the autoencoder, diffusers layout")
    parser.add_argument("--out", required=True)
    parser.add_argument("--chunks", type=int, nargs=2, default=(0, 48), metavar=("FIRST", "END"))
    parser.add_argument("--stride", type=int, default=1, help="take every n-th chunk, to share the work")
    parser.add_argument("--wordless", action="store_true", help="encode clips that are shown without a caption")
    parser.add_argument("--clips", type=int, default=64, help="clips in a chunk")
    parser.add_argument("--frames", type=int, default=57)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    vae = video_vae.use_channels_last(video_vae.load(args.vae))
    encoder = torch.compile(lambda pixels: video_vae.encode_moments(vae, pixels), dynamic=False)
    kind, sample = ("wordless", data.sample_wordless) if args.wordless else ("latents", data.sample_clip)
    for number in range(args.chunks[0], args.chunks[1], args.stride):
        path = out / f"{kind}-{number:05}.safetensors"
        if path.exists():
            continue
        started = time.time()
        rng = random.Random(1_000_003 * number + 7)
        # none of the held-out combinations
        clips = [sample(rng) for _ in range(args.clips)]
        with torch.no_grad():
            latents = encode_chunk(encoder, vae, clips, args.frames)
        path.with_suffix(".json").write_text(json.dumps([clip.as_dict() for clip in clips]))
        save_file({"latents": latents}, f"{path}.part")
        os.replace(f"{path}.part", path)
        print(f"chunk {number}: {args.clips} clips in {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
