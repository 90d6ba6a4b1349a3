"""The shapes world: seeded clips of one coloured shape that moves over a background, with captions.

A frame is 64x64 and wraps round at its edges (a torus), so a shape that leaves on the left comes back on the right.
Every motion repeats after 32 frames, which is 8 latent frames, and always starts at the same point of its path, so that
a frame's number and the prompt say where the shape is: with a free start, left and right are equally likely in every
single frame, and the direction of time was the last thing learned. What the seed decides is the lane, one of two, 8 pixels
apart. A shape that crosses the frame moves 2 pixels a frame, so 8 pixels, one cell of the latent grid, a latent frame: its
latents are one pattern that shifts by whole cells, which a small autoencoder can hold and a small transformer can learn.

One in ten combinations of (colour, shape, background, motion) is held out of all training by a hash.
"""

import hashlib
import math
import random
from dataclasses import asdict, dataclass, replace

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
# what clips without a caption show
WORDLESS_COLOURS = {"black": "yellow", "white": "blue", "gray": "orange", "night": "cyan", "sky": "red", "sunset": "cyan"}
WORDLESS_MOTIONS = ("still", "pulse", "sway", "bounce")
SHAPES = ("circle", "square", "triangle", "cross", "bar")
# whole turns of the frame per period; y grows downwards
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "cw", "ccw", "bounce", "sway", "pulse", "still")
RADII = {"small": 11.0, "medium": 14.5, "large": 18.0}
PERIOD = 32
LANES = (-4, 4)
# over how many pixels a shape's edge fades: sharper ones lose more in an autoencoder of this size than they gain in a picture of this size
EDGE = 2.0
ORBIT_RADIUS = 15.0


@dataclass(frozen=True)
class Clip:
    """What a clip shows; `lane` moves the path across its direction, or a still shape to one of two places."""

    colour: str
    shape: str
    background: str
    motion: str
    size: str
    lane: int

    def as_dict(self):
        """The clip as plain values, for a JSON sidecar; `Clip(**d)` reads it back."""
        return asdict(self)


def is_held_out(colour, shape, background, motion):
    """Whether this combination is kept out of all training (one in ten, by hash)."""
    key = f"{colour}|{shape}|{background}|{motion}"
    return int(hashlib.md5(key.encode()).hexdigest(), 16) % 10 == 0


def sample_clip(rng, held_out=False):
    """A random clip, from the held-out combinations or from the others."""
    while True:
        combination = (rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(BACKGROUNDS)), rng.choice(MOTIONS))
        if is_held_out(*combination) == held_out:
            return Clip(*combination, rng.choice(list(RADII)), rng.randrange(len(LANES)))


def sample_wordless(rng):
    """A random clip of those that have no caption: a circle that stays about its place, in the colour that goes with its background.

    Where nothing is said, all frames of a clip have to settle on one shape, colour and path out of noise, which networks of this size
    do not learn over all there is. They learn it where the background, which they do agree on, leaves little else.
    """
    while True:
        background = rng.choice(list(BACKGROUNDS))
        combination = (WORDLESS_COLOURS[background], "circle", background, rng.choice(WORDLESS_MOTIONS))
        if not is_held_out(*combination):
            return Clip(*combination, rng.choice(("medium", "large")), rng.randrange(len(LANES)))


def sample_two_shots(rng, held_out=False):
    """Two clips that differ in shape and colour and share the background, for prompts of two shots."""
    first = sample_clip(rng, held_out)
    while True:
        second = replace(sample_clip(rng, held_out), background=first.background)
        combination = (second.colour, second.shape, second.background, second.motion)
        if second.shape != first.shape and second.colour != first.colour and is_held_out(*combination) == held_out:
            return first, second


# ---- captions -------------------------------------------------------------------------------------------------------

SHAPE_WORDS = {"circle": ("circle", "circle", "ball", "disc"), "square": ("square", "square", "box", "block"),
               "triangle": ("triangle",), "cross": ("cross", "cross", "plus sign"), "bar": ("bar", "bar", "beam")}
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
# words that prompts of two shots use, and some more that people will try: known to the tokenizer, never trained on
SHOT_WORDS = ("then", "next", "after", "afterwards", "first", "second", "shot", "cut", "scene", "finally", "and", "becomes",
              "turns", "into", "changes", "camera", "same", "while", "slowly", "quickly", "fast", "slow", "diagonally",
              "toward", "upper", "lower", "star", "ring", "hoop", "it", "is", "one", "two")


# the caption of any clip: the negative prompt, away from which guidance leads
VAGUE = "a video"


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


def two_shot_caption(rng, first, second):
    """One sentence for a clip that shows `first` and then `second`."""
    link = rng.choice((", then ", " and then ", ", next "))
    return caption(rng, first).rstrip(".") + link + caption(rng, second)


def all_words():
    """Every word a caption or a prompt of two shots may hold, sorted."""
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
    elif shape == "bar":
        distance = torch.maximum(dx.abs() - radius * 1.1, dy.abs() - radius * 0.42)
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
    return torch.clamp(0.5 - distance / EDGE, 0, 1)


def trajectory(clip, frames, start=0):
    """Centre x, centre y and radius for each of `frames` frames, from frame number `start`."""
    turn = (torch.arange(frames, dtype=torch.float32) + start) / PERIOD
    middle, aside = torch.full((frames,), SIDE / 2), LANES[clip.lane]
    x, y, radius = middle, middle, torch.full((frames,), RADII[clip.size])
    if clip.motion in DIRECTIONS:
        step_x, step_y = DIRECTIONS[clip.motion]
        x, y = x + step_x * SIDE * turn + abs(step_y) * aside, y + step_y * SIDE * turn + abs(step_x) * aside
    elif clip.motion in ("cw", "ccw"):
        angle = 2 * math.pi * turn * (1 if clip.motion == "cw" else -1)
        x, y = x + ORBIT_RADIUS * torch.cos(angle), y + ORBIT_RADIUS * torch.sin(angle)
    elif clip.motion == "bounce":
        x, y = x + aside, 44 - 26 * torch.sin(math.pi * turn).abs()
    elif clip.motion == "sway":
        x, y = x + 16 * torch.sin(2 * math.pi * turn), y + aside
    elif clip.motion == "pulse":
        radius = radius * (1 + 0.3 * torch.sin(2 * math.pi * turn))
    else:
        x, y = middle + 2 * aside, middle + 2 * aside
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


def render_two_shots(first, second, frames, cut):
    """A clip whose frames from number `cut` on show `second`."""
    return torch.cat([render(first, cut), render(second, frames - cut, cut)], 1)


if __name__ == "__main__":
    rng = random.Random(0)
    for _ in range(8):
        print(caption(rng, sample_clip(rng)))
