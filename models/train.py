"""Trains the transformer by flow matching on encoded clips, alone or as one of several ranks.

The base run covers all noise levels and learns the text encoder too; the two expert runs start from it, keep the text
encoder as it is and each cover one side of the boundary. A base run begins with the first latent frames of each clip, which
costs less and teaches most of it, and ends with whole clips.

Resumes from `last.pt` in its directory. Run several ranks with `torchrun --nproc_per_node 2 train.py ...`.
"""

import argparse
import copy
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

import data
import muon
import networks
import tokenizer

LATENT_FRAMES = 21
# every motion's period, and the latent frame from which on a clip's latents repeat (the encoder has forgotten the beginning)
PERIOD, STEADY = data.PERIOD // 4, 7


class LatentPool:
    """The encoded clips found so far in a directory; `refresh` picks up new ones."""

    def __init__(self, directory, limit=None, weights=None):
        self.directory, self.limit = Path(directory), limit
        self.paths, self.latents, self.clips = [], None, []
        # how often clips of a shape are drawn, 1 where nothing is said
        self.shape_weights = weights or {}
        # of each clip, to be drawn with its caption and without one
        self.captioned, self.wordless = torch.zeros(0), torch.zeros(0)
        self.refresh()

    def refresh(self):
        """Loads the chunks that appeared since the last call."""
        found = [p for kind in ("latents", "wordless") for p in sorted(self.directory.glob(f"{kind}-*.safetensors"))[: self.limit]]
        for path in (p for p in found if p not in self.paths):
            latents = load_file(path)["latents"]
            clips = [data.Clip(**c) for c in json.loads(path.with_suffix(".json").read_text())]
            weights, none = torch.tensor([self.shape_weights.get(clip.shape, 1.0) for clip in clips]), torch.zeros(len(clips))
            is_wordless = path.name.startswith("wordless")
            self.latents = latents if self.latents is None else torch.cat([self.latents, latents])
            self.captioned = torch.cat([self.captioned, none if is_wordless else weights])
            self.wordless = torch.cat([self.wordless, none + 1 if is_wordless else none])
            self.clips += clips
            self.paths.append(path)

    def draw(self, generator, rng, count, frames, vague_fraction, empty_fraction):
        """The latent frames numbered `frames` of `count` random clips and their captions: some say nothing in particular, some nothing."""
        dice = [rng.random() for _ in range(count)]
        weights = torch.stack([self.wordless if die < empty_fraction else self.captioned for die in dice])
        picked = torch.multinomial(weights, 1, generator=generator)[:, 0]
        prompts = ["" if die < empty_fraction else data.VAGUE if die < empty_fraction + vague_fraction else
                   data.caption(rng, self.clips[i]) for die, i in zip(dice, picked.tolist(), strict=True)]
        index = torch.where(frames < STEADY, frames, STEADY + (frames - STEADY) % PERIOD)
        return self.latents[picked][:, :, index].float(), prompts


def draw_noise_levels(generator, count, low, high, shift):
    """Stratified noise levels in [low, high], distributed as the sampler's steps at this shift."""
    def place(level):
        return level / (shift - (shift - 1) * level)

    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    u = place(low) + u * (place(high) - place(low))
    return shift * u / (1 + (shift - 1) * u)


def split_parameters(transformer, text_encoder):
    """Parameters for Muon (hidden matrices) and for Adam (the rest); a frozen text encoder is in neither."""
    outside = ("shared", "embed_tokens", "relative", "proj_out", "time_embedder", "time_proj", "patch_embedding")
    named = [(n, p) for m in (transformer, text_encoder) for n, p in m.named_parameters() if p.requires_grad]
    hidden = [p for n, p in named if p.ndim == 2 and not any(word in n for word in outside)]
    chosen = {id(p) for p in hidden}
    return hidden, [p for _, p in named if id(p) not in chosen]


def starting_weights(path):
    """State of transformer and text encoder, from `last.pt` of another run or from an expert of an exported checkpoint."""
    if path.is_dir():
        transformer = networks.WanTransformer3DModel.from_pretrained(path).float().state_dict()
        return transformer, networks.UMT5EncoderModel.from_pretrained(path.parent / "text_encoder").float().state_dict()
    average = torch.load(path)["average"]
    return average["transformer"], average["text"]


class Trainer:
    """One run: models, their averages, the optimiser and the clock."""

    def __init__(self, args, rank, ranks):
        self.args, self.rank, self.ranks = args, rank, ranks
        torch.manual_seed(args.seed)
        self.words = tokenizer.build()
        self.transformer = networks.build_transformer(args.dim, args.heads, args.layers, args.ffn)
        self.text = networks.build_text_encoder(len(self.words))
        if args.init:
            transformer, text = starting_weights(Path(args.init))
            self.transformer.load_state_dict(transformer)
            self.text.load_state_dict(text)
        self.text.requires_grad_(not args.freeze_text)
        self.average = copy.deepcopy(self.transformer), copy.deepcopy(self.text)
        self.optimiser = muon.Muon(*split_parameters(self.transformer, self.text), rank=rank, ranks=ranks,
                                   precision=torch.bfloat16 if args.bfloat16 else torch.float32)
        self.generator = torch.Generator().manual_seed(args.seed * 64 + rank)
        self.rng = random.Random(args.seed * 64 + rank)
        self.step_number, self.seconds = 0, 0.0
        self.path = Path(args.out) / "last.pt"
        self.pool = LatentPool(args.latents, weights=args.weights)
        # teacher forcing, with its masked attention, runs three times as fast compiled; the other a fifth faster
        self.teacher_forced = torch.compile(networks.teacher_forced_velocity, dynamic=False)
        self.velocity = torch.compile(networks.velocity, dynamic=False)
        if self.path.exists():
            self.load()

    def load(self):
        """Goes on from the last checkpoint."""
        state = torch.load(self.path)
        for model, average, name in zip((self.transformer, self.text), self.average, ("transformer", "text"), strict=True):
            model.load_state_dict(state["running"][name])
            average.load_state_dict(state["average"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step_number, self.seconds = state["step"], state["seconds"]
        self.rng.seed(self.step_number * 64 + self.rank)
        self.generator.manual_seed(self.step_number * 64 + self.rank)

    def save(self):
        """Writes the checkpoint, whole or not at all."""
        running = {"transformer": self.transformer.state_dict(), "text": self.text.state_dict()}
        average = {"transformer": self.average[0].state_dict(), "text": self.average[1].state_dict()}
        state = {"running": running, "average": average, "optimiser": self.optimiser.state_dict(), "step": self.step_number,
                 "seconds": self.seconds, "args": vars(self.args)}
        torch.save(state, f"{self.path}.part")
        os.replace(f"{self.path}.part", self.path)

    def progress(self):
        """How much of the budget is spent, in 0..1."""
        if self.args.steps:
            return self.step_number / self.args.steps
        return self.seconds / (60 * self.args.minutes)

    def loss(self, progress):
        """The flow-matching loss of one batch: velocity = noise - clean. Returns errors and noise levels one to one."""
        args = self.args
        count = next(n for until, n in args.stages if progress < until or until >= 1)
        batch = max(1, args.frames_per_step // count // self.ranks)
        start = self.rng.randrange(LATENT_FRAMES - count + 1) if args.anywhere and not args.causal and self.rng.random() < 0.5 else 0
        frames = torch.arange(start, start + count)
        clean, prompts = self.pool.draw(self.generator, self.rng, batch, frames, args.vague, args.empty)
        noise = torch.randn(clean.shape, generator=self.generator)
        # a noise level for each clip, or for each block of it
        parts = count // networks.BLOCK if args.causal else 1
        level = draw_noise_levels(self.generator, batch * parts, *args.range, args.shift)
        level = level[torch.randperm(len(level), generator=self.generator)].view(batch, parts)
        mix = level.repeat_interleave(count // parts, 1)[:, None, :, None, None]
        noisy = (1 - mix) * clean + mix * noise
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            rows, bias = networks.encode_prompts(self.words, self.text, prompts)
            if args.causal:
                context = self.disturb(clean[:, :, : -networks.BLOCK])
                got = self.teacher_forced(self.transformer, context, noisy, level, rows, bias)
            else:
                got = self.velocity(self.transformer, noisy, level[:, 0], rows, bias, frames)
        error = (got.float() - (noise - clean)).pow(2).unflatten(2, (parts, -1)).mean((1, 3, 4, 5))
        return error.mean(), error.detach().flatten(), level.flatten()

    def disturb(self, context):
        """Clean context with a little noise in most clips, so that a rollout survives what it generated itself."""
        batch = len(context)
        most = torch.rand(batch, generator=self.generator) < 0.7
        amount = (self.args.disturbance * torch.rand(batch, generator=self.generator) * most).view(-1, 1, 1, 1, 1)
        return (1 - amount) * context + amount * torch.randn(context.shape, generator=self.generator)

    def reduce(self, parameters):
        """Averages gradients over ranks and agrees on rank 0's clock."""
        clock = torch.tensor([self.seconds if self.rank == 0 else 0.0]) * self.ranks
        flat = torch.cat([p.grad.flatten() for p in parameters] + [clock]) / self.ranks
        dist.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters] + [1])
        for parameter, part in zip(parameters, parts, strict=False):
            parameter.grad.copy_(part.view_as(parameter))
        self.seconds = float(parts[-1])

    def step(self):
        """One update; returns the per-clip errors and noise levels, the gradient norm and the learning rate."""
        progress = self.progress()
        loss, error, level = self.loss(progress)
        parameters = self.optimiser.parameters()
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if self.ranks > 1:
            self.reduce(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = self.args.rate * min(1, (self.step_number + 1) / self.args.warm_up)
        rate *= max(self.args.least, min(1, (1 - progress) / (1 - self.args.flat)))
        self.optimiser.step(rate)
        self.step_number += 1
        decay = min(self.args.decay, self.step_number / (self.step_number + 20))
        with torch.no_grad():
            for average, model in zip(self.average, (self.transformer, self.text), strict=True):
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        return error, level, norm, rate

    def run(self):
        """Trains until the budget is spent, counted over all resumed parts (compilation takes no minutes)."""
        errors, levels, since = [], [], time.time()
        first = self.step_number
        while self.progress() < 1:
            started = time.time()
            error, level, norm, rate = self.step()
            if self.step_number - first > 2:
                self.seconds += min(time.time() - started, 30)
            errors.append(error)
            levels.append(level)
            if self.step_number % self.args.log_every == 0 and self.rank == 0:
                e, s = torch.cat(errors), torch.cat(levels)
                bands = " ".join(f"{lo:.2f}+ {e[(s >= lo) & (s < hi)].mean():.4f}" for lo, hi in
                                 ((0, 0.5), (0.5, 0.75), (0.75, 0.875), (0.875, 0.95), (0.95, 1.01)))
                pace = (time.time() - since) / self.args.log_every
                print(f"{self.step_number} {self.seconds:.0f}s loss {e.mean():.4f} | {bands} | norm {norm:.2f} rate {rate:.1e} "
                      f"{pace:.2f} s/step, {len(self.pool.clips)} clips", flush=True)
                errors, levels, since = [], [], time.time()
            if self.step_number % self.args.save_every == 0:
                self.pool.refresh()
                if self.rank == 0:
                    self.save()
        if self.rank == 0:
            self.save()


def parse_weights(entries):
    """What `SHAPE:WEIGHT` entries say."""
    return {shape: float(weight) for shape, weight in (entry.split(":") for entry in entries)}


def parse_arguments():
    """Command line; `--stages 0.6:7 1:21` means 7 latent frames until 60 % of the budget, then 21."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--init", help="`last.pt` of another run, or an expert's directory in a checkpoint, to start from")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget in minutes of training")
    budget.add_argument("--steps", type=int, help="budget in steps")
    parser.add_argument("--range", type=float, nargs=2, default=(0.0, 1.0), help="noise levels to train on")
    parser.add_argument("--causal", action="store_true", help="block by block, each given the clean blocks before it")
    parser.add_argument("--disturbance", type=float, default=0.25, help="most noise in the clean context of causal training")
    parser.add_argument("--anywhere", action="store_true", help="half of the steps take frames from anywhere in the clips (not with --causal)")
    parser.add_argument("--weights", nargs="*", default=[], metavar="SHAPE:WEIGHT", help="draw clips of these shapes more or less often")
    parser.add_argument("--vague", type=float, default=0.1, help="fraction of captions that say nothing in particular, for guidance")
    parser.add_argument("--empty", type=float, default=0.1, help="fraction of clips without a caption")
    parser.add_argument("--freeze-text", action="store_true")
    parser.add_argument("--stages", nargs="+", default=["0.5:9", "1:21"])
    parser.add_argument("--frames-per-step", type=int, default=168, help="latent frames in a step, over all ranks")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--flat", type=float, default=0.3, help="fraction of the budget before the rate falls")
    parser.add_argument("--least", type=float, default=0.02, help="fraction of the rate below which it does not fall")
    parser.add_argument("--warm-up", type=int, default=60)
    parser.add_argument("--decay", type=float, default=0.998, help="of the weights' running average")
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ffn", type=int, default=512)
    parser.add_argument("--bfloat16", action="store_true", help="for CPUs and GPUs that multiply bfloat16 in hardware")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=200)
    args = parser.parse_args()
    args.stages = [(float(until), int(count)) for until, count in (stage.split(":") for stage in args.stages)]
    args.weights = parse_weights(args.weights)
    return args


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    Trainer(args, rank, ranks).run()


if __name__ == "__main__":
    main()
