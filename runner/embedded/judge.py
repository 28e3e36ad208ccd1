"""A judge without learning: which shape, color and motion (of a still: place) does a clip of the little world show?

It takes the brightness out of each pixel (backgrounds are neutral), finds the one hue that stands out, follows its
blob through the frames and tells the shape by the symmetry of its outline. Without such a blob it says "none".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.embedded.world import COLORS, RGB, SHAPES, SIDES, SIZE, Attributes, coverage, parse

NONE = Attributes("none", "none", "none")
CHROMA = 0.14  # least color strength of an object
AREA = (60, 1000)  # pixels in a frame
STILL_AREA = (60, 1700)
SHIFT, GROWTH = 9.0, 1.35  # pixels and ratio of radii over the clip that count as motion
ASIDE, CLOSE = 7.5, 14.75  # pixels from the middle of a still, and radius, that make a place
THREEFOLD, FOURFOLD = 0.12, 0.06  # harmonics: 0.55 in a sharp triangle, 0.42 and -0.29 in a sharp cross and square
OVERLAP = 0.6  # least overlap (intersection over union) with the ideal shape
UNIT = {shape: float(coverage(shape, [32.0], [32.0], [16.0]).sum()) / 256 for shape in SHAPES}  # area at radius 1


def _directions() -> NDArray[Any]:
    chroma = np.array([RGB[name] for name in COLORS])
    chroma -= chroma.mean(1, keepdims=True)
    return chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


HUES = _directions()


def _slope(values: NDArray[Any]) -> tuple[float, float]:
    """Change over the whole clip of a line fitted to `values` [T], and the fit's root mean square residual."""
    time = np.linspace(-0.5, 0.5, len(values))
    rate = float(time @ values / (time @ time))
    return rate, float(np.std(values - rate * time))


def judge(frames: NDArray[np.uint8]) -> Attributes:
    """Attributes of a clip, uint8 [T, 64, 64, 3], each "none" where nothing fits; all "none" on noise. T = 1 is a
    still, which has a place instead of a motion."""
    if frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3) or not len(frames):
        raise ValueError(f"the judge sees clips [T, {SIZE}, {SIZE}, 3], got {list(frames.shape)}")
    least, most = AREA if len(frames) > 1 else STILL_AREA
    image = frames.astype(np.float32) / 255
    image -= image.mean(-1, keepdims=True)
    strength = np.sqrt(np.einsum("thwc,thwc->thw", image, image))
    strong = strength > CHROMA
    if strong.sum() < least * len(frames):
        return NONE
    mean = image[strong].mean(0)
    length = float(np.linalg.norm(mean))
    if length < 0.75 * float(strength[strong].mean()):  # the colors disagree
        return NONE
    nearest = HUES @ (mean / length)
    color = COLORS[int(nearest.argmax())] if nearest.max() > 0.9 else "none"

    along = image @ (mean / length)
    core = float(np.median(along[strong]))
    alpha = np.clip(along / core, 0, 1)
    alpha[alpha < 0.25] = 0
    area = alpha.sum((1, 2))
    if area.min() < least or area.max() > most:
        return NONE
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    x, y = alpha.sum(1) @ grid / area, alpha.sum(2) @ grid / area
    if len(frames) > 1:
        (dx, rx), (dy, ry) = _slope(x), _slope(y)
        if max(rx, ry) > 2.5:  # no steady path
            return NONE

    shape = _shape(alpha, x, y, area)
    few = np.linspace(0, len(frames) - 1, min(len(frames), 6)).round().astype(int)
    ideal = coverage(shape, x[few], y[few], np.sqrt(area[few] / UNIT[shape]))
    shared = np.minimum(ideal, alpha[few]).sum((1, 2)) / np.maximum(ideal, alpha[few]).sum((1, 2))
    if shared.mean() < OVERLAP:
        return NONE
    if len(frames) > 1:
        return Attributes(shape, color, _motion(dx, dy, np.sqrt(area)))
    return Attributes(shape, color, _place(x[0] - SIZE / 2, y[0] - SIZE / 2, np.sqrt(area[0] / UNIT[shape])))


def _shape(alpha: NDArray[Any], x: NDArray[Any], y: NDArray[Any], area: NDArray[Any]) -> str:
    """The shape by the three- and fourfold harmonics of its mass around its center, [-1, 1], which survive blur: a
    triangle points up, a cross reaches along the axes, a square along the diagonals, a circle nowhere."""
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    right, up = grid - x[:, None, None], y[:, None, None] - grid[:, None]
    weight = alpha * (right**2 + up**2)
    angle = np.arctan2(right, up)
    total = weight.sum((1, 2))
    three, four = (float(((weight * np.cos(n * angle)).sum((1, 2)) / total) @ area / area.sum()) for n in (3, 4))
    if three > THREEFOLD:
        return "triangle"
    return "cross" if four > FOURFOLD else "square" if four < -FOURFOLD else "circle"


def _motion(dx: float, dy: float, radius: NDArray[Any]) -> str:
    far, near = (dx, dy) if abs(dx) > abs(dy) else (dy, dx)
    growth = (radius.mean() + _slope(radius)[0] / 2) / max(radius.mean() - _slope(radius)[0] / 2, 1e-3)
    grows, moves = growth > GROWTH, abs(far) > SHIFT
    if moves and not grows and abs(near) < 0.5 * abs(far):
        names = ("moving left", "moving right") if abs(dx) > abs(dy) else ("moving up", "moving down")
        return names[far > 0]
    if grows and not moves:
        return "growing"
    return "standing still" if not moves and not grows and growth > 1 / GROWTH else "none"


def _place(x: float, y: float, radius: float) -> str:
    far, near = max(abs(x), abs(y)), min(abs(x), abs(y))
    if far < ASIDE:
        return "up close" if radius > CLOSE else "in the middle"
    if radius > CLOSE or near > 0.5 * far:
        return "none"
    along = 0 if abs(x) > abs(y) else 1
    side = tuple(int(np.sign(v)) if axis == along else 0 for axis, v in enumerate((x, y)))
    return next(place for place, direction in SIDES.items() if direction == side)


def score(frames: NDArray[np.uint8], caption: str) -> float:
    """Share of the three attributes named by `caption` that the clip shows: 0, 1/3, 2/3 or 1."""
    return sum(a == b for a, b in zip(judge(frames), parse(caption), strict=True)) / 3
