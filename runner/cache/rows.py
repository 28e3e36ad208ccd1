"""What pages say of the cache: what is reused, how that was found, how far the prediction held. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from runner.config import wording
from runner.page.pieces import Figure, Row, Section, Value, limits
from runner.page.plot import Axis, Point, heat, scatter
from runner.page.run import Run
from runner.page.values import mapping, number, pick
from runner.technique import questions

STAGE = "search-cache"
NAMES = {"dit_cache": "DiT cache", "adaptive": "adaptive cache"}
SPEED = Axis("speed of the loop, all computed = 1", wording.times)
DAMAGE = Axis("error of the latents", wording.digits)
FIELDS = ("cache_step_start", "cache_step_interval", "cache_block_start", "cache_num_blocks")


class Rows(questions.Rows):
    """Reuse of blocks: what it leaves to compute, the speed of the loop, the search."""

    figures = (
        Figure("loop_speed", "speed of the loop by reuse", lambda run: number(_timed(run), "speedup"), wording.times,
               True, cost=0),
    )  # fmt: skip

    def name(self, config: Mapping[str, Any]) -> str | None:
        """The policy."""
        policy = pick(config, "cache", "policy")
        return None if policy in (None, "none") else NAMES.get(str(policy), str(policy))

    def claim(self, run: Run) -> str:
        """How much faster reuse makes the loop."""
        reuse = number(_timed(run), "speedup")
        return "" if reuse is None else f"reuse makes the denoising loop {wording.times(reuse)} as fast"

    def highlights(self, run: Run) -> Iterator[tuple[str, Value]]:
        """The speed of the loop."""
        if (reuse := number(_timed(run), "speedup")) is not None:
            yield "speed of the loop, all computed = 1", Value(wording.times(reuse), limits(_timed(run)))

    def predicted(self, run: Run) -> Iterator[Row]:
        """The share of blocks that is computed."""
        if left := computed_share(run):
            whole = Value(wording.share(1.0), f"{wording.count(number(_applied(run), 'blocks'))} blocks a step")
            change = Value(f"{wording.times(1 / left)} as fast", "if blocks were all")
            yield Row("Blocks computed", "over all steps", whole, Value(wording.share(left)), change)

    def measured(self, run: Run) -> Iterator[Row]:
        """Steps that compute all beside those that reuse."""
        timed = _timed(run)
        if (reuse := number(timed, "speedup")) is not None:
            before = Value(wording.seconds(number(timed, "full_seconds")), "a step that computes all")
            after = Value(wording.seconds(number(timed, "reuse_seconds")), "a step that reuses")
            note = f"medians of {wording.count(number(timed, 'steps_timed'))} of its steps"
            yield Row("Denoising loop", note, before, after, Value(f"{wording.times(reuse)} as fast", limits(timed)))

    def sections(self, run: Run) -> Iterator[Section]:
        """What the cache reuses, and the search for it, as far as there was one."""
        search = _search(run)
        if _applied(run) or search:
            values = {
                "statement": pick(search, "statement"),
                "forwards": number(search, "forwards"),
                "generations": number(search, "generations"),
                "exhaustive": pick(search, "search") == "exhaustive",
                "tried": list(_tried(run)),
                "plots": [(title, svg) for title, svg in _plots(run) if svg],
            }
            yield Section("cache/cache.html.jinja", values)


def _search(run: Run) -> Mapping[str, Any]:
    return run.of_stage(STAGE, "search.json")


def _applied(run: Run) -> Mapping[str, Any]:
    """What sample applied."""
    return mapping(run.metrics.get("cache"))


def _timed(run: Run) -> Mapping[str, Any]:
    return mapping(run.measured.get("cache"))


def computed_share(run: Run) -> float | None:
    """The share of all blocks in all steps that the cache leaves to compute; None without one."""
    ranges, blocks = _applied(run).get("ranges"), number(_applied(run), "blocks")
    if not isinstance(ranges, list) or not ranges or not blocks:
        return None
    skipped = sum(reused[1] - reused[0] for reused in ranges if reused)
    return 1 - skipped / (len(ranges) * blocks)


def in_words(config: Any) -> str:
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
    found, speeds = pick(_search(run), "verified"), pick(run.measurements(STAGE), "verified")
    for place, row in enumerate(found if isinstance(found, list) else ()):
        speed = speeds[place] if isinstance(speeds, list) and place < len(speeds) else {}
        yield row, speed, place == pick(_search(run), "answer")


def _tried(run: Run) -> Iterator[dict[str, str | bool]]:
    for row, speed, chosen in _verified(run):
        low, high = number(speed, "low"), number(speed, "high")
        yield {
            "config": in_words(row.get("config")),
            "chosen": chosen,
            "predicted_speed": wording.times(number(row, "predicted_speedup")),
            "speed": wording.times(number(speed, "speedup")),
            "limits": "" if low is None or high is None else f"{wording.times(low)} to {wording.times(high)}",
            "predicted_damage": wording.digits(number(row, "predicted_damage")),
            "damage": wording.digits(number(row, "damage")),
        }


def _plots(run: Run) -> Iterator[tuple[str, Markup]]:
    points = list(_points(run))
    front = pick(_search(run), "front")
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
    ranges, blocks = _applied(run).get("ranges"), number(_applied(run), "blocks")
    if not isinstance(ranges, list) or not blocks:
        return []
    return [[float(bool(r) and r[0] <= block < r[1]) for r in ranges] for block in range(int(blocks))]


def _movement(run: Run) -> list[list[float]]:
    """By block and step, from step 1 on, as a share of the most; there is none at step 0."""
    moved: Sequence[Sequence[float]] = pick(_search(run), "movement") or []
    most = max((value for row in moved for value in row), default=0)
    if not most:
        return []
    return [[0.0, *(round(row[block] / most, 2) for row in moved)] for block in range(len(moved[0]))]
