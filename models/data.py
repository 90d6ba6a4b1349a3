"""The shapes world: seeded clips of one coloured shape that moves over a background, with captions.

A frame is 64x64 and wraps round at its edges (a torus), so a shape that leaves on the left comes back on the right.
Clips are drawn from two ranges. `sample_wide` feeds the autoencoder: every shape, motion, speed and start. `sample_clip`
feeds the transformers: the shapes that survive the autoencoder, one speed, and starts near the middle wherever the
motion does not carry the shape through the whole frame.

One in ten combinations of (colour, shape, background, motion) is held out of all training by a hash.
"""

import hashlib
import math
import random
from dataclasses import asdict, dataclass

import torch

SIDE = 64
FPS = 16

COLOURS = {
    "red": (225, 30, 35), "orange": (245, 135, 20), "yellow": (240, 220, 30), "green": (35, 165, 55),
    "cyan": (40, 205, 215), "blue": (30, 65, 225), "purple": (125, 40, 175), "pink": (250, 120, 185),
}
# (top, bottom) of a vertical gradient
BACKGROUNDS = {
    "black": ((8, 8, 8), (8, 8, 8)), "white": ((245, 245, 245), (245, 245, 245)), "gray": ((120, 120, 120), (120, 120, 120)),
    "night": ((4, 4, 10), (45, 50, 90)), "sky": ((135, 175, 215), (235, 242, 250)), "sunset": ((70, 45, 85), (215, 165, 130)),
}
SHAPES = ("circle", "square", "triangle", "cross")
WIDE_SHAPES = SHAPES + ("ring",)
# pixels per frame, as a multiple of the clip's speed; y grows downwards
DIRECTIONS = {
    "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
    "upleft": (-0.75, -0.75), "upright": (0.75, -0.75), "downleft": (-0.75, 0.75), "downright": (0.75, 0.75),
}
MOTIONS = ("left", "right", "up", "down", "cw", "ccw", "bounce", "sway", "pulse", "still")
WIDE_MOTIONS = tuple(DIRECTIONS) + ("cw", "ccw", "bounce", "pulse", "still")
RADII = {"small": 11.0, "medium": 14.0, "large": 17.0}
WIDE_RADII = {"small": 10.0, "medium": 13.0, "large": 17.0}
SPEED = 1.0
WIDE_SPEEDS = (0.8, 1.25, 1.25, 1.9)
ORBIT_RADIUS = 15.0


@dataclass(frozen=True)
class Clip:
    """What a clip shows. Lengths are pixels, speed is pixels per frame, phase is radians."""

    colour: str
    shape: str
    background: str
    motion: str
    size: str
    radius: float
    speed: float
    x: float
    y: float
    phase: float

    def as_dict(self):
        """The clip as plain values, for a JSON sidecar; `Clip(**d)` reads it back."""
        return asdict(self)


def is_held_out(colour, shape, background, motion):
    """Whether this combination is kept out of all training (one in ten, by hash)."""
    key = f"{colour}|{shape}|{background}|{motion}"
    return int(hashlib.md5(key.encode()).hexdigest(), 16) % 10 == 0


def _sample_combination(rng, shapes, motions, held_out):
    while True:
        combination = (rng.choice(list(COLOURS)), rng.choice(shapes), rng.choice(list(BACKGROUNDS)), rng.choice(motions))
        if is_held_out(*combination) == held_out:
            return combination


def sample_wide(rng, held_out=False):
    """A clip from the autoencoder's range."""
    combination = _sample_combination(rng, WIDE_SHAPES, WIDE_MOTIONS, held_out)
    size = rng.choice(["small", "medium", "medium", "large"])
    return Clip(*combination, size, WIDE_RADII[size], rng.choice(WIDE_SPEEDS),
                rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(0, 2 * math.pi))


def sample_clip(rng, held_out=False):
    """A clip from the transformers' range."""
    combination = _sample_combination(rng, SHAPES, MOTIONS, held_out)
    motion = combination[3]
    size = rng.choice(["small", "medium", "large"])
    x, y = rng.uniform(24, 40), rng.uniform(24, 40)
    if motion in ("left", "right"):
        x = rng.uniform(0, SIDE)
    if motion in ("up", "down"):
        y = rng.uniform(0, SIDE)
    return Clip(*combination, size, RADII[size], SPEED, x, y, rng.uniform(0, 2 * math.pi))


# ---- captions -------------------------------------------------------------------------------------------------------

SHAPE_WORDS = {"circle": ("circle", "circle", "ball", "disc"), "square": ("square", "square", "box", "block"),
               "triangle": ("triangle",), "cross": ("cross", "cross", "plus sign"), "ring": ("ring", "hoop")}
COLOUR_WORDS = {"purple": ("purple", "purple", "violet"), "cyan": ("cyan", "cyan", "turquoise")}
BACKGROUND_WORDS = {
    "black": ("a black background", "a plain black background"), "white": ("a white background", "a plain white background"),
    "gray": ("a gray background", "a plain grey background"), "night": ("a night sky", "a dark night gradient"),
    "sky": ("a pale blue sky", "a light sky gradient"), "sunset": ("a sunset gradient", "a sunset sky"),
}
VERBS = ("moving", "moves", "gliding", "glides", "sliding", "slides", "drifting", "drifts")
MOTION_WORDS = {
    "left": ("left", "to the left", "leftward"), "right": ("right", "to the right", "rightward"),
    "up": ("up", "upward", "upwards"), "down": ("down", "downward", "downwards"),
    "cw": ("circling clockwise", "orbiting clockwise", "orbits clockwise"),
    "ccw": ("circling counterclockwise", "orbiting counterclockwise", "orbits counterclockwise"),
    "bounce": ("bouncing", "bounces", "hopping"), "sway": ("swaying", "sways", "swinging side to side"),
    "pulse": ("pulsing", "pulses", "growing and shrinking"), "still": ("standing still", "not moving", "resting in place"),
}
SIZE_WORDS = {"small": ("small", "tiny"), "medium": ("", "", "medium-sized"), "large": ("large", "big")}
TEMPLATES = (("{an} {thing} {motion} on {background}", 0.55), ("on {background}, {an} {thing} {motion}", 0.15),
             ("the video shows {an} {thing} {motion} over {background}", 0.15), ("{thing} {motion}, {background}", 0.15))
# words that prompts of several shots use; no clip of this world has two shots, so they are known but carry no meaning yet
SHOT_WORDS = ("then", "next", "after", "afterwards", "first", "second", "shot", "cut", "scene", "finally", "and", "becomes",
              "turns", "into", "changes", "camera", "same", "while", "slowly", "quickly", "fast", "slow", "diagonally",
              "toward", "upper", "lower", "star", "ring", "hoop", "it", "is", "one", "two")


def caption(rng, clip):
    """One sentence that says size, colour, shape, motion and background of the clip."""
    colour = rng.choice(COLOUR_WORDS.get(clip.colour, (clip.colour,)))
    words = (rng.choice(SIZE_WORDS[clip.size]), colour, rng.choice(SHAPE_WORDS[clip.shape]))
    thing = " ".join(word for word in words if word)
    motion = rng.choice(MOTION_WORDS[clip.motion])
    if clip.motion in DIRECTIONS:
        motion = f"{rng.choice(VERBS)} {motion}"
    template = rng.choices([t for t, _ in TEMPLATES], [weight for _, weight in TEMPLATES])[0]
    sentence = template.format(an="an" if thing[0] in "aeiou" else "a", thing=thing, motion=motion,
                               background=rng.choice(BACKGROUND_WORDS[clip.background]))
    return sentence + ("." if rng.random() < 0.3 else "")


def all_words():
    """Every word a caption or a prompt of several shots may hold, sorted."""
    tables = [SHAPE_WORDS, COLOUR_WORDS, BACKGROUND_WORDS, MOTION_WORDS, SIZE_WORDS]
    phrases = [phrase for table in tables for row in table.values() for phrase in row]
    phrases += [*COLOURS, *VERBS, *SHOT_WORDS, "an on over the video shows , . - ! ?"]
    return sorted({word for phrase in phrases for word in phrase.replace("-", " - ").split()})


# ---- pictures -------------------------------------------------------------------------------------------------------


def coverage(shape, dx, dy, radius):
    """How much of each pixel the shape covers, in [0, 1]; `dx`, `dy` are pixel offsets from its centre (broadcastable)."""
    if shape == "circle":
        distance = torch.sqrt(dx * dx + dy * dy) - radius
    elif shape == "square":
        distance = torch.maximum(dx.abs(), dy.abs()) - radius * 0.88
    elif shape == "ring":
        distance = (torch.sqrt(dx * dx + dy * dy) - radius * 0.78).abs() - radius * 0.26
    elif shape == "cross":
        arm = radius * 0.34
        upright = torch.maximum(dx.abs() - arm, dy.abs() - radius)
        distance = torch.minimum(torch.maximum(dx.abs() - radius, dy.abs() - arm), upright)
    elif shape == "triangle":
        slope = math.sqrt(3) / 2
        y = dy + radius * 0.12
        sides = torch.maximum(slope * dx - 0.5 * y, -slope * dx - 0.5 * y) - radius * 0.62
        distance = torch.maximum(y - radius * 0.72, sides)
    else:
        raise ValueError(f"unknown shape {shape}")
    return torch.clamp(0.5 - distance, 0, 1)


def trajectory(clip, frames, start=0):
    """Centre x, centre y and radius for each of `frames` frames, from frame number `start`."""
    t = torch.arange(frames, dtype=torch.float32) + start
    speed, phase = clip.speed, clip.phase
    x, y = torch.full((frames,), clip.x), torch.full((frames,), clip.y)
    radius = torch.full((frames,), clip.radius)
    inner_x, inner_y = 18 + clip.x / SIDE * 28, 18 + clip.y / SIDE * 28
    if clip.motion in DIRECTIONS:
        step_x, step_y = DIRECTIONS[clip.motion]
        x, y = x + step_x * speed * t, y + step_y * speed * t
    elif clip.motion in ("cw", "ccw"):
        turn = speed / ORBIT_RADIUS * 1.25 * (1 if clip.motion == "cw" else -1)
        x = SIDE / 2 + ORBIT_RADIUS * torch.cos(phase + turn * t)
        y = SIDE / 2 + ORBIT_RADIUS * torch.sin(phase + turn * t)
    elif clip.motion == "bounce":
        x = torch.full((frames,), inner_x)
        y = 60 - clip.radius - 26 * torch.sin(math.pi * (t * speed / 25 + phase / (2 * math.pi))).abs()
    elif clip.motion == "sway":
        x = SIDE / 2 + 15 * torch.sin(math.pi * t * speed / 25 + phase)
    elif clip.motion == "pulse":
        x, y = torch.full((frames,), inner_x), torch.full((frames,), inner_y)
        radius = radius * (1 + 0.3 * torch.sin(2 * math.pi * t * speed / 35 + phase))
    return x, y, radius


def colour_value(rgb):
    """A colour of 0..255 as a tensor of three values in [-1, 1]."""
    return torch.tensor(rgb).float() / 127.5 - 1


def background_picture(name):
    """The background as [3, 64, 64] in [-1, 1]."""
    top, bottom = (colour_value(rgb).view(3, 1, 1) for rgb in BACKGROUNDS[name])
    fade = (torch.arange(SIDE).float() / (SIDE - 1)).view(1, SIDE, 1)
    return (top * (1 - fade) + bottom * fade).expand(3, SIDE, SIDE)


def pixel_grid():
    """Row and column centre of every pixel, [64, 64] each."""
    axis = torch.arange(SIDE).float() + 0.5
    return torch.meshgrid(axis, axis, indexing="ij")


def wrapped(offset):
    """Offsets on the torus: the shortest way round, in [-32, 32)."""
    return torch.remainder(offset + SIDE / 2, SIDE) - SIDE / 2


def render(clip, frames, start=0):
    """The clip as [3, frames, 64, 64] in [-1, 1]."""
    rows, columns = pixel_grid()
    x, y, radius = (value.view(-1, 1, 1) for value in trajectory(clip, frames, start))
    cover = coverage(clip.shape, wrapped(columns[None] - x), wrapped(rows[None] - y), radius)[None]
    paint = colour_value(COLOURS[clip.colour]).view(3, 1, 1, 1)
    return background_picture(clip.background)[:, None] * (1 - cover) + paint * cover


if __name__ == "__main__":
    rng = random.Random(0)
    for _ in range(8):
        print(caption(rng, sample_clip(rng)))
