"""Plots as SVG, by arithmetic alone: the same points give the same bytes, and no library or font is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 240  # of a scatter plot, in the units of its view box
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 40
TICKS = 5  # at most, on each axis
LETTER, LINE = 6.2, 12  # about the width of a letter and the height of a line

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One run in a plot: what it is called, where it lies, and within which limits of x."""

    label: str
    x: float
    y: float
    limits: tuple[float, float] | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Axis:
    """What is measured along an axis, and how its numbers are written."""

    label: str
    show: Callable[[float], str]


def scatter(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    name: str,
    joined: bool = False,
    under: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Points over two axes, each with its label; `joined`: a line through them from left to right; `under`: a line of
    its own beneath them.

    `name` makes the ids of this plot its own on a page. Points that are not finite are left out; without any that is
    left the plot is empty.
    """
    points = sorted((p for p in points if math.isfinite(p.x) and math.isfinite(p.y)), key=lambda p: (p.x, p.y, p.label))
    if not points:
        return Markup("")
    reach = [end for p in points for end in p.limits or ()]
    across = ticks([*(p.x for p in points), *reach, *(a for a, _ in under)], x.show)
    up = ticks([*(p.y for p in points), *(b for _, b in under)], y.show)

    def px(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - across[0]) / (across[-1] - across[0])

    def py(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - up[0]) / (up[-1] - up[0])

    title = f"{y.label} against {x.label}"
    told = "; ".join(f"{p.label}: {x.show(p.x)}, {y.show(p.y)}" for p in points)
    lines = [
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-about">',
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(told)}</desc>',
    ]
    for value in up:
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>')
        lines.append(f'<text class="tick end" x="{LEFT - 6}" y="{py(value) + 4:.1f}">{escape(y.show(value))}</text>')
    for value in across:
        lines.append(
            f'<text class="tick middle" x="{px(value):.1f}" y="{HEIGHT - BOTTOM + 16}">{escape(x.show(value))}</text>'
        )
    lines.append(f'<text class="axis end" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}">{escape(x.label)}</text>')
    if under:
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in under)
        lines.append(f'<polyline class="under" points="{path}"/>')
    if joined:
        path = " ".join(f"{px(p.x):.1f},{py(p.y):.1f}" for p in points)
        lines.append(f'<polyline class="joined" points="{path}"/>')
    taken: list[Box] = [(px(p.x) - 4, py(p.y) - 4, px(p.x) + 4, py(p.y) + 4) for p in points]
    for p in points:
        if p.limits:
            low, high = map(px, p.limits)
            lines.append(f'<line class="limits" x1="{low:.1f}" x2="{high:.1f}" y1="{py(p.y):.1f}" y2="{py(p.y):.1f}"/>')
        chosen = ' class="chosen"' if p.chosen else ""
        lines.append(f'<circle{chosen} cx="{px(p.x):.1f}" cy="{py(p.y):.1f}" r="{5 if p.chosen else 4}"/>')
        if p.label:
            left, y_text = _room(px(p.x), py(p.y), LETTER * len(p.label), taken)
            lines.append(f'<text class="label" x="{left:.1f}" y="{y_text:.1f}">{escape(p.label)}</text>')
    return Markup("\n".join([*lines, "</svg>"]))


def _room(x: float, y: float, width: float, taken: list[Box]) -> tuple[float, float]:
    """Where a label beside the point (x, y) begins: the nearest place in the plot that no other label has; it is
    `taken` then."""
    rows = (down for far in range(5) for down in (-6 - far * LINE, 15 + far * LINE))
    places = [(left, y + down) for down in rows for left in (x + 7, x - 7 - width)]
    for left, base in places:
        box = (left, base - LINE, left + width, base)
        inside = left >= 0 and left + width <= WIDTH and base >= LINE and base <= HEIGHT - BOTTOM
        if inside and all(box[2] < b[0] or b[2] < box[0] or box[3] <= b[1] or b[3] <= box[1] for b in taken):
            break
    else:
        left, base = max(0.0, min(places[0][0], WIDTH - width)), places[0][1]
    taken.append((left, base - LINE, left + width, base))
    return left, base


def heat(rows: Sequence[Sequence[float]], across: str, up: str, name: str, about: str) -> Markup:
    """A map of values in [0, 1], rows[0] at the bottom: the higher the darker. Equal neighbors are one rectangle."""
    if not rows or not rows[0]:
        return Markup("")
    cell = (WIDTH - LEFT - RIGHT) / len(rows[0])
    high = (HEIGHT - TOP - BOTTOM) / len(rows)
    lines = [
        f'<svg class="scatter heat" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title">',
        f'<title id="{name}-title">{escape(about)}</title>',
        f'<rect class="ground" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>',
    ]
    for place, row in enumerate(rows):
        y, begun = HEIGHT - BOTTOM - (place + 1) * high, 0
        for end in range(1, len(row) + 1):
            if end == len(row) or row[end] != row[begun]:
                if row[begun] > 0:
                    lines.append(
                        f'<rect x="{LEFT + begun * cell:.2f}" y="{y:.2f}" width="{(end - begun) * cell:.2f}" '
                        f'height="{high:.2f}" fill-opacity="{row[begun]:.3f}"/>'
                    )
                begun = end
    for value in dict.fromkeys((0, len(rows[0]) - 1)):
        x = LEFT + (value + 0.5) * cell
        lines.append(f'<text class="tick middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{value}</text>')
    for value in dict.fromkeys((0, len(rows) - 1)):
        y = HEIGHT - BOTTOM - (value + 0.5) * high + 4
        lines.append(f'<text class="tick end" x="{LEFT - 6}" y="{y:.1f}">{value}</text>')
    lines.append(f'<text class="axis end" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}">{escape(across)}</text>')
    lines.append(f'<text class="axis" x="{LEFT - 46}" y="{TOP + (HEIGHT - TOP - BOTTOM) / 2:.1f}">{escape(up)}</text>')
    return Markup("\n".join([*lines, "</svg>"]))


def ticks(values: Sequence[float], show: Callable[[float], str]) -> list[float]:
    """Round numbers that span the values: at least two, at most about TICKS, and no two that `show` writes alike."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    rough = (high - low) / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = (factor * power * 10.0**more for more in range(20) for factor in (1, 2, 5))
    for step in (step for step in steps if step >= rough * (1 - 1e-9)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        found = [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]
        if len({show(value) for value in found}) == len(found):
            return found
    raise ValueError(f"no two round numbers around {low} and {high} are written differently")
