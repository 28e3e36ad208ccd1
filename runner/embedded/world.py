"""A world of captioned clips, "a red circle moving left", and of captioned stills, "a red circle on the left".

One flat shape on a neutral background, lit from one side, does one thing, or is in one place. Shape, color and motion
(of a still: place) are what captions name and what the judge sees; all else, such as size, speed and light, varies
freely. Everything follows from the generator given. Edges are soft (about two pixels), so that a small autoencoder of
8x8 pixels a latent can hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "magenta", "cyan")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "standing still")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle", "up close")  # of stills
RGB = {
    "red": (0.85, 0.2, 0.2),
    "green": (0.2, 0.7, 0.2),
    "blue": (0.2, 0.2, 0.85),
    "yellow": (0.85, 0.8, 0.2),
    "magenta": (0.8, 0.2, 0.8),
    "cyan": (0.2, 0.75, 0.8),
}
DIRECTIONS = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
SIDES = dict(zip(PLACES, DIRECTIONS.values(), strict=False))  # from the middle
BACKGROUNDS = {"above": (0, -1), "below": (0, 1), "left": (-1, 0), "right": (1, 0)}  # where the light falls in from
FRAMES, SIZE = 17, 64
EDGE = 2.0  # width of the soft edge in pixels
GRAY = 0.45  # the background in its middle: the autoencoder's norms hide a clip's level, so levels do not vary


class Attributes(NamedTuple):
    """What a caption names and the judge sees; the judge may also say "none". Of a still, `motion` is its place."""

    shape: str
    color: str
    motion: str


@dataclass(frozen=True)
class Scene:
    """A clip or still before drawing. Lengths in pixels; the path runs from `start` to `end`, (x, y), evenly."""

    attributes: Attributes
    start: tuple[float, float]
    end: tuple[float, float]
    radius: tuple[float, float]  # first and last frame
    light: str  # the side of the background that is bright, a key of BACKGROUNDS
    shade: float  # how much brighter than the opposite side, in [0, 1]


def combinations(split: str = "all", motions: tuple[str, ...] = MOTIONS) -> list[Attributes]:
    """The (shape, color, motion) of `all`, `seen` or `unseen`, in a fixed order; with PLACES those of stills.

    One motion of six is unseen for every (shape, color), and at most one shape for every (color, motion).
    """
    found = []
    for (s, shape), (c, color), (m, motion) in product(*map(enumerate, (SHAPES, COLORS, motions))):
        if split == "all" or ((m - c) % 6 == s) == (split == "unseen"):
            found.append(Attributes(shape, color, motion))
    return found


SEEN, UNSEEN = tuple(combinations("seen")), tuple(combinations("unseen"))


def caption(attributes: Attributes) -> str:
    """The caption: `a red circle moving left`."""
    return f"a {attributes.color} {attributes.shape} {attributes.motion}"


def parse(text: str) -> Attributes:
    """The attributes that a caption names. ValueError when it is no caption of this world."""
    words = text.split()
    if len(words) >= 4 and words[0] == "a":
        attributes = Attributes(words[2], words[1], " ".join(words[3:]))
        if attributes.shape in SHAPES and attributes.color in COLORS and attributes.motion in MOTIONS + PLACES:
            return attributes
    raise ValueError(f"not a caption of the little world: {text!r}; such as {caption(SEEN[0])!r}")


def motions_of(model: str) -> tuple[str, ...]:
    """What captions name beside shape and color where the small weights of a model are asked: of SD3 places."""
    return PLACES if model == "sd3" else MOTIONS


def captions(split: str = "all", motions: tuple[str, ...] = MOTIONS) -> list[str]:
    """The captions of `all`, `seen` or `unseen` combinations, in a fixed order; with PLACES those of stills."""
    return [caption(each) for each in combinations(split, motions)]


def scene(attributes: Attributes, rng: np.random.Generator) -> Scene:
    """Draw the free parameters of a clip, or of a still where the attributes name a place."""
    where = attributes.motion
    middle = SIZE / 2 + rng.uniform(-4, 4, 2) * (0.5 if where in PLACES else 1)
    travel = rng.uniform(10, 13) * np.array(DIRECTIONS.get(where, (0, 0)))
    if where == "growing":
        radius = (rng.uniform(6, 7.5), rng.uniform(13, 15.5))
    elif where == "up close":
        radius = (rng.uniform(16.5, 20),) * 2
    elif where in SIDES:
        radius = (rng.uniform(8, 10),) * 2
        middle += rng.uniform(13, 16) * np.array(SIDES[where])
    else:
        radius = (rng.uniform(9.5, 13),) * 2
    light, shade = str(rng.choice(list(BACKGROUNDS))), float(rng.uniform(0.2, 0.3))
    start, end = (tuple(float(v) for v in middle + sign * travel) for sign in (-1, 1))
    return Scene(attributes, start, end, radius, light, shade)  # type: ignore[arg-type]


def distance(shape: str, x: NDArray[Any], y: NDArray[Any], radius: NDArray[Any]) -> NDArray[Any]:
    """Signed distance (negative inside, pixels) to a shape about its center of mass; y points down, all broadcast."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    if shape == "triangle":  # equilateral, tip up, circumradius 1.36 r
        return np.maximum(y, np.abs(x) * 0.8660254 - y * 0.5) - 0.68 * radius
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        long, thick = 1.15 * radius, 0.42 * radius
        return np.minimum(np.maximum(x - long, y - thick), np.maximum(x - thick, y - long))
    raise ValueError(f"unknown shape {shape!r}; the world has {', '.join(SHAPES)}")


def coverage(shape: str, x: ArrayLike, y: ArrayLike, radius: ArrayLike) -> NDArray[Any]:
    """The share of each pixel that the shape covers, float32 [T, SIZE, SIZE]; `x`, `y`, `radius` are [T]."""
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    left, top, size = (np.asarray(v, np.float32)[:, None, None] for v in (x, y, radius))
    return np.clip(0.5 - distance(shape, grid[None, None] - left, grid[None, :, None] - top, size) / EDGE, 0, 1)


def render(scene: Scene, window: slice = slice(None), frames: int = FRAMES) -> NDArray[np.uint8]:
    """Draw a scene in so many frames, or a window of them: uint8 RGB [T, H, W, 3], 64x64."""
    time = np.linspace(0, 1, frames, dtype=np.float32)[window]
    (x0, y0), (x1, y1), (r0, r1) = scene.start, scene.end, scene.radius
    place = x0 + (x1 - x0) * time, y0 + (y1 - y0) * time, r0 + (r1 - r0) * time
    alpha = coverage(scene.attributes.shape, *place)[..., None]
    (right, down), ramp = BACKGROUNDS[scene.light], (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE - 0.5
    background = GRAY + scene.shade * (right * ramp[None, :] + down * ramp[:, None])
    color = np.array(RGB[scene.attributes.color], np.float32)
    image = background[None, :, :, None] * (1 - alpha) + color * alpha
    return (image * 255 + 0.5).astype(np.uint8)


def still(attributes: Attributes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random still, [64, 64, 3]."""
    return render(scene(attributes, rng), slice(0, 1))[0]


def sample(rng: np.random.Generator, split: str = "seen") -> tuple[NDArray[np.uint8], str]:
    """A random clip and its caption, of `all`, `seen` or `unseen` combinations."""
    chosen = captions(split)
    text = chosen[rng.integers(len(chosen))]
    return render(scene(parse(text), rng)), text
