"""One generation with diffusers' WanPipeline, in f32 or (all but the VAE) in bfloat16, timed by stage. Started by compare.py in a process of its own.

Reads one JSON job on stdin; prints one JSON object on stdout: seconds per stage.
"""

import json
import sys
import time


class Stages:
    """Seconds by stage."""

    def __init__(self):
        self.seconds = {}

    def run(self, name, work):
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        return result


def load(job):
    import torch
    from diffusers import WanPipeline  # imported before: no part of this stage

    dtype = torch.bfloat16 if job["dtype"] == "bf16" else torch.float32
    pipe = WanPipeline.from_pretrained(
        job["model"], torch_dtype={"default": dtype, "vae": torch.float32}, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def initial_noise(job):
    """The noise of the job's file, or drawn from its seed as a user of diffusers would."""
    import torch
    from safetensors.torch import load_file

    if job["noise"] is not None:
        return {"latents": load_file(job["noise"])["noise"].unsqueeze(0)}
    return {"generator": torch.Generator("cpu").manual_seed(job["seed"])}


def denoise(pipe, job, embeds, noise):
    """Latents [1, 16, T, h, w] as the pipeline leaves them, before the VAE's de-normalisation."""
    positive, negative = embeds
    return pipe(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        height=job["height"],
        width=job["width"],
        num_frames=job["frames"],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance_high"],
        guidance_scale_2=job["guidance_low"],
        output_type="latent",
        return_dict=False,
        **noise,
    )[0]


def decode(pipe, latents):
    """Frames [T, H, W, 3] in 0..1, by the steps that end WanPipeline.__call__."""
    import torch

    config = pipe.vae.config
    mean = torch.tensor(config.latents_mean).view(1, config.z_dim, 1, 1, 1)
    inverse_std = 1.0 / torch.tensor(config.latents_std).view(1, config.z_dim, 1, 1, 1)
    video = pipe.vae.decode(latents.float() / inverse_std + mean, return_dict=False)[0]
    return pipe.video_processor.postprocess_video(video, output_type="np")[0]


def export(frames, job):
    from diffusers.utils import export_to_video

    return export_to_video(list(frames), job["video"], fps=job["fps"])


def main():
    job = json.load(sys.stdin)
    stages = Stages()

    import torch
    from diffusers import WanPipeline  # noqa: F401
    from safetensors.torch import save_file

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)

    noise = initial_noise(job)
    pipe = stages.run("load", lambda: load(job))
    embeds = stages.run(
        "text",
        lambda: pipe.encode_prompt(
            job["prompt"], negative_prompt=job["negative"], max_sequence_length=job["text_tokens"]
        ),
    )
    latents = stages.run("denoise", lambda: denoise(pipe, job, embeds, noise))
    frames = stages.run("decode", lambda: decode(pipe, latents))
    try:
        stages.run("encode", lambda: export(frames, job))
    except (ImportError, AttributeError):
        # Neither imageio-ffmpeg nor OpenCV is installed: the stage is missing from the table.
        pass
    save_file({"latents": latents[0].float().contiguous()}, job["latents"])
    save_file({"frames": torch.from_numpy(frames).contiguous()}, job["frames_file"])
    json.dump({"seconds": stages.seconds}, sys.stdout)


if __name__ == "__main__":
    main()
