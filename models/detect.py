"""Reads colour, shape, background, motion and size back out of a clip, without having seen its caption."""

import functools
import math

import torch
import torch.nn.functional as F

import data
from data import SIDE

ATTRIBUTES = ("colour", "shape", "background", "motion", "size")
TEMPLATE_RADII = [6 + 0.75 * i for i in range(24)]
COMPASS = ("right", "down", "left", "up")


@functools.cache
def _shape_templates(shapes):
    """Masks of every shape at every radius, centred on pixel (0, 0) of the torus: spectra and areas."""
    rows, columns = data.pixel_grid()
    dx, dy = data.wrapped(columns - 0.5), data.wrapped(rows - 0.5)
    masks = torch.stack([torch.stack([data.coverage(shape, dx, dy, torch.tensor(r)) for r in TEMPLATE_RADII]) for shape in shapes])
    return torch.fft.rfft2(masks), masks.sum((-1, -2))


def _background_and_mask(pictures):
    """The best background's name, the soft and the hard mask of what differs from it; pictures [T, 3, 64, 64]."""
    names = list(data.BACKGROUNDS)
    candidates = torch.stack([data.background_picture(name) for name in names])
    difference = (pictures[:, None] - candidates[None]).abs().amax(2)
    best = int((difference < 0.22).float().mean((0, 2, 3)).argmax())
    difference = difference[:, best]
    return names[best], ((difference - 0.2) / 0.3).clamp(0, 1), difference > 0.5


def _colour(pictures, hard):
    """The palette colour nearest to the median of the object's inner pixels."""
    core = hard & (F.avg_pool2d(hard.float()[:, None], 3, 1, 1)[:, 0] > 0.99)
    core = core if core.sum() >= 10 else hard
    seen = pictures.permute(0, 2, 3, 1)[core].median(0).values
    palette = torch.stack([data.colour_value(rgb) for rgb in data.COLOURS.values()])
    return list(data.COLOURS)[int((palette - seen).norm(dim=-1).argmin())]


def _shape(mask, shapes):
    """The shape whose template overlaps best at any place and radius, its overlap, and the radius of its best template."""
    picked = mask[torch.linspace(0, len(mask) - 1, min(len(mask), 9)).round().long()]
    spectra, areas = _shape_templates(shapes)
    overlap = torch.fft.irfft2(torch.fft.rfft2(picked)[:, None, None] * spectra[None].conj(), s=(SIDE, SIDE)).amax((-1, -2))
    iou = overlap / (picked.sum((1, 2))[:, None, None] + areas[None] - overlap)
    scores = iou.amax(2).mean(0)
    best = int(scores.argmax())
    radius = torch.tensor(TEMPLATE_RADII)[iou[:, best].argmax(1)].mean()
    return shapes[best], float(scores[best]), float(radius)


def _circular_centre(profile):
    """Centre of mass on the torus of [T, 64] profiles, in pixels."""
    angle = torch.arange(SIDE).float() * 2 * math.pi / SIDE
    return torch.atan2((profile * angle.sin()).sum(-1), (profile * angle.cos()).sum(-1)) * SIDE / (2 * math.pi)


def _motion(mask):
    """The motion's name by the path of the centre, sampled every third frame, and by how the area varies."""
    stride = 3
    picked = torch.arange(0, len(mask), stride)
    x, y = _circular_centre(mask.sum(1))[picked], _circular_centre(mask.sum(2))[picked]
    dx, dy = data.wrapped(x[1:] - x[:-1]), data.wrapped(y[1:] - y[:-1])
    steps = (dx**2 + dy**2).sqrt()
    length = float(steps.sum())
    if length / (len(dx) * stride) < 0.28:
        area = mask.sum((1, 2))
        return "pulse" if float(area.std() / area.mean()) > 0.12 else "still"
    if math.hypot(float(dx.sum()), float(dy.sum())) / length > 0.85:
        return COMPASS[round(math.atan2(float(dy.sum()), float(dx.sum())) / (math.pi / 2)) % 4]
    if float(dx.abs().sum()) < 0.25 * length:
        return "bounce"
    if float(dy.abs().sum()) < 0.25 * length:
        return "sway"
    turning = float((dx[:-1] * dy[1:] - dy[:-1] * dx[1:]).sum() / (steps[:-1] * steps[1:]).clamp(min=1e-6).sum())
    if abs(turning) > 0.06:
        return "cw" if turning > 0 else "ccw"
    return "other"


def detect(video):
    """What [3, T, 64, 64] in [-1, 1] shows: the five attributes (None if nothing is seen) and the shape's overlap."""
    pictures = video.permute(1, 0, 2, 3).float()
    background, mask, hard = _background_and_mask(pictures)
    seen = dict.fromkeys(ATTRIBUTES) | {"background": background, "overlap": 0.0}
    if hard.sum() < 20 * len(pictures):
        return seen
    shape, overlap, radius = _shape(mask, data.SHAPES)
    size = min(data.RADII, key=lambda name: abs(data.RADII[name] - radius))
    return seen | {"colour": _colour(pictures, hard), "shape": shape, "motion": _motion(mask), "size": size, "overlap": overlap}


def agreement(clip, seen):
    """For each attribute whether the detector saw what the clip was meant to show."""
    return {name: getattr(clip, name) == seen[name] for name in ATTRIBUTES}
