"""What of a page is about the cache: what is reused, how that was found, and how far the prediction held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from runner.config import wording
from runner.desk.report.page import Section
from runner.desk.report.plot import Axis, Point, heat, scatter
from runner.desk.report.read import Run
from runner.desk.report.values import number, pick

SPEED = Axis("speed of the loop, all computed = 1", wording.times)
DAMAGE = Axis("error of the latents", wording.digits)
FIELDS = ("cache_step_start", "cache_step_interval", "cache_block_start", "cache_num_blocks")


def cache(run: Run) -> Section | None:
    """What the cache reuses, and the search for it, as far as there was one."""
    if not run.cache and not run.cache_search:
        return None
    plots = [(title, svg) for title, svg in _plots(run) if svg]
    values = {
        "statement": pick(run.cache_search, "statement"),
        "forwards": number(run.cache_search, "forwards"),
        "generations": number(run.cache_search, "generations"),
        "exhaustive": pick(run.cache_search, "search") == "exhaustive",
        "tried": list(_tried(run)),
        "plots": plots,
    }
    return Section("cache.html.jinja", values)


def said(config: Any) -> str:
    """A configuration in words."""
    segments = pick(config, "cache_segments")
    if isinstance(segments, list):
        return f"{len(segments)} segment{'' if len(segments) == 1 else 's'}"
    start, interval, first, count = (pick(config, name) for name in FIELDS)
    if None in (start, interval, first, count):
        return wording.UNKNOWN
    blocks = f"blocks {first} to {first + count - 1}" if count > 1 else f"block {first}" if count else "no block"
    return f"{blocks}, from step {start}, all computed every {interval}"


def _verified(run: Run) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], bool]]:
    """What was verified: (what search.json says, what was measured, whether it is the answer)."""
    found, speeds = pick(run.cache_search, "verified"), pick(run.cache_measured, "verified")
    for place, row in enumerate(found if isinstance(found, list) else ()):
        speed = speeds[place] if isinstance(speeds, list) and place < len(speeds) else {}
        yield row, speed, place == pick(run.cache_search, "answer")


def _tried(run: Run) -> Iterator[dict[str, str | bool]]:
    for row, speed, chosen in _verified(run):
        low, high = number(speed, "low"), number(speed, "high")
        yield {
            "config": said(row.get("config")),
            "chosen": chosen,
            "predicted_speed": wording.times(number(row, "predicted_speedup")),
            "speed": wording.times(number(speed, "speedup")),
            "limits": "" if low is None or high is None else f"{wording.times(low)} to {wording.times(high)}",
            "predicted_damage": wording.digits(number(row, "predicted_damage")),
            "damage": wording.digits(number(row, "damage")),
        }


def _plots(run: Run) -> Iterator[tuple[str, Markup]]:
    points = list(_points(run))
    front = pick(run.cache_search, "front")
    line = [
        (speed, damage)
        for each in (front if isinstance(front, list) else ())
        if (speed := number(each, "predicted_speedup")) and (damage := number(each, "predicted_damage")) is not None
    ]
    if points:
        reach = 1.3 * max(p.x for p in points), 2 * max(p.y for p in points)
        near = [(x, y) for x, y in line if x <= reach[0] and y <= reach[1]]
        yield (
            "Damage against speed: what was measured, over the predicted front",
            scatter(points, SPEED, DAMAGE, "cache-front", under=near),
        )
    held = [
        Point("chosen" if chosen else "", predicted, damage, chosen=chosen)
        for row, _, chosen in _verified(run)
        if (predicted := number(row, "predicted_damage")) is not None and (damage := number(row, "damage")) is not None
    ]
    if held:
        most = max(max(p.x, p.y) for p in held)
        yield (
            "Measured against predicted damage; on the line they are equal",
            scatter(
                held, Axis("predicted error", wording.digits), DAMAGE, "cache-held", under=((0.0, 0.0), (most, most))
            ),
        )
    if mask := _mask(run):
        yield "What is reused (dark), step by block", heat(mask, "step", "block", "cache-mask", "Reused blocks by step")
    if moved := _movement(run):
        about = "How much the change of each block moved since the step before"
        yield f"{about}, the most being dark", heat(moved, "step", "block", "cache-movement", about)


def _points(run: Run) -> Iterator[Point]:
    for row, speed, chosen in _verified(run):
        x, y, low, high = number(speed, "speedup"), number(row, "damage"), number(speed, "low"), number(speed, "high")
        if x is not None and y is not None:
            limits = None if low is None or high is None else (low, high)
            yield Point("chosen" if chosen else "", x, y, limits, chosen)


def _mask(run: Run) -> list[list[float]]:
    """By block and step: 1 where it is reused."""
    ranges, blocks = run.cache.get("ranges"), number(run.cache, "blocks")
    if not isinstance(ranges, list) or not blocks:
        return []
    return [[float(bool(r) and r[0] <= block < r[1]) for r in ranges] for block in range(int(blocks))]


def _movement(run: Run) -> list[list[float]]:
    """By block and step, from step 1 on, as a share of the most; there is none at step 0."""
    moved: Sequence[Sequence[float]] = pick(run.cache_search, "movement") or []
    most = max((value for row in moved for value in row), default=0)
    if not most:
        return []
    return [[0.0, *(round(row[block] / most, 2) for row in moved)] for block in range(len(moved[0]))]
