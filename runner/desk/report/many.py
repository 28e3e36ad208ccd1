"""The page of several runs, a sweep's or any others: MANY lists its parts, each a function of the runs compared."""

from __future__ import annotations

import math
import os
import shlex
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.faults import spell
from runner.desk.report.compare import Comparison, Row, compare
from runner.desk.report.page import render, write_page
from runner.desk.report.run import video_box
from runner.page.pieces import Figure, Section
from runner.page.plot import Axis, Point, scatter

EAGER = 24  # videos that play when the page opens; the others wait behind a click
LONGEST = 48  # characters of a value in a table's cell
FLOAT = "float"  # begins what a reference is called


@dataclass(frozen=True)
class Shown:
    """A video on the page of many: whose it is, where it lies from there, and its shape."""

    label: str
    path: str
    video: dict[str, Any]
    eager: bool


def write_many(folders: Sequence[Path], page: Path, title: str, command: Sequence[str] = ()) -> Path:
    """Write a page that compares run folders to `page`, and return it. Videos are linked where they lie.

    Raises FileNotFoundError where one is no folder.
    """
    comparison = compare(folders)
    place = Path(os.path.abspath(page)).parent
    sections = filter(None, (section(comparison, place) for section in MANY))
    weights = {row.run.checkpoint.get("label"): row.run.checkpoint for row in comparison.rows if row.run.checkpoint}
    html = render(
        "many.html.jinja",
        sections,
        checkpoint=next(iter(weights.values())) if len(weights) == 1 else None,
        title=title,
        summary=summary(comparison),
        command=shlex.join(command),
        created=min((row.run.created for row in comparison.rows if row.run.created), default=""),
    )
    return write_page(page, html)


def summary(comparison: Comparison) -> str:
    """How many runs there are and how they ended, in one sentence."""
    states = Counter(row.run.state for row in comparison.rows)
    order = sorted(states, key=lambda state: (state != "done", state))
    runs = f"{len(comparison.rows)} run{'' if len(comparison.rows) == 1 else 's'}"
    over = f" over {', '.join(comparison.keys[:4])}{' and more' if len(comparison.keys) > 4 else ''}"
    ended = ", ".join(f"{states[state]} {STATES.get(state, state)}" for state in order)
    return f"{runs}{over if comparison.keys else ''}: {ended}."


STATES = {"waiting": "not started", "running": "under way"}


def table(comparison: Comparison, place: Path) -> Section:
    """One row a run, only the columns that differ."""
    rows = []
    for row in comparison.rows:
        page = row.run.folder / "report.html"
        rows.append(
            {
                "label": row.label,
                "link": _link(page, place) if page.is_file() else None,
                "keys": [cell(row.keys[key]) for key in comparison.keys],
                "state": STATES.get(row.run.state, row.run.state),
                "figures": [figure.show(row.figures[figure.key]) for figure in comparison.figures],
                "cause": row.cause,
            }
        )
    same = [(figure.label, figure.show(value)) for figure, value in comparison.same]
    values = {"rows": rows, "keys": comparison.keys, "figures": comparison.figures, "same": same}
    return Section("table.html.jinja", values)


def plots(comparison: Comparison, place: Path) -> Section | None:
    """Quality against cost; and against the key that varies, where there is one and it is a number."""
    cost = next(iter(_ranked(comparison, lambda figure: figure.cost)), None)
    quality = _ranked(comparison, lambda figure: figure.quality)
    pairs = [(cost, figure) for figure in quality[:2]] if cost else []
    drawn = []
    for x, y in pairs:
        points = [
            Point(_name(comparison, row), a, b)
            for row in comparison.rows
            if (a := row.figures[x.key]) is not None and (b := row.figures[y.key]) is not None
        ]
        drawn.append((f"{y.label} against {x.label}", scatter(points, _axis(x), _axis(y), f"plot-{x.key}-{y.key}")))
    if key := _numeric(comparison):
        for y in [*quality[:2], *([cost] if cost else [])]:
            points = [
                Point(row.label, float(row.keys[key]), b)
                for row in comparison.rows
                if row.keys[key] is not None and (b := row.figures[y.key]) is not None
            ]
            name = f"plot-{key.replace('.', '-')}-{y.key}"
            drawn.append((f"{y.label} against {key}", scatter(points, Axis(key, _plain), _axis(y), name, joined=True)))
    return Section("plots.html.jinja", {"plots": [(title, svg) for title, svg in drawn if svg]}) if drawn else None


def clips(comparison: Comparison, place: Path) -> Section | None:
    """The clips of each prompt side by side: first the float reference that all have in common, else each its own."""
    prompts: dict[tuple[str, int], list[tuple[str, Path, dict[str, Any]]]] = {}
    for row in comparison.rows:
        seen: Counter[str] = Counter()
        for clip in row.run.clips:
            shown = prompts.setdefault((clip.prompt, seen[clip.prompt]), [])
            seen[clip.prompt] += 1
            own = clip.result if row.run.arm else clip.reference  # a float run's own clip is the reference
            if row.run.arm and clip.reference:
                shown.append((f"{FLOAT} of {row.label}", row.run.folder / clip.reference, video_box(row.run)))
            if own:
                shown.append((_called(row), row.run.folder / own, video_box(row.run)))
    groups, count = [], 0
    for (prompt, _), shown in prompts.items():
        videos = []
        for label, file, box in _once(shown):
            videos.append(Shown(label, _link(file, place), box, count < EAGER))
            count += 1
        if videos:
            groups.append((prompt, videos))
    return Section("side.html.jinja", {"groups": groups}) if groups else None


# In the order of the page. A section that has nothing to show is None.
MANY: tuple[Callable[[Comparison, Path], Section | None], ...] = (table, plots, clips)


def cell(value: Any) -> str:
    """A key's value in a table: short, and nothing for None."""
    return "" if value is None else textwrap.shorten(spell(value), LONGEST, placeholder=" ...")


def _once(shown: Sequence[tuple[str, Path, dict[str, Any]]]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Without the references that are one file, linked into many runs."""
    files = [(status.st_dev, status.st_ino) for status in (path.stat() for _, path, _ in shown)]
    references = {file for file, (label, _, _) in zip(files, shown, strict=True) if label.startswith(FLOAT)}
    for place, (label, path, box) in enumerate(shown):
        if files[place] not in references or files[place] not in files[:place]:
            yield FLOAT if len(references) == 1 and label.startswith(FLOAT) else label, path, box


def _called(row: Row) -> str:
    told = [f"{key.rpartition('.')[2]}={cell(value)}" for key, value in row.keys.items() if value is not None]
    return f"{row.label}: {', '.join(told)}" if 0 < len(told) <= 3 else row.label


def _name(comparison: Comparison, row: Row) -> str:
    """What a run is called in a plot: by the key that tells the runs apart if it is one, else as in the table."""
    return cell(row.keys[comparison.keys[0]]) if len(comparison.keys) == 1 else row.label


def _ranked(comparison: Comparison, rank: Callable[[Figure], int | None]) -> list[Figure]:
    """The figures with a rank that a plot can show, the lowest rank first."""
    ranked = [(place, figure) for figure in comparison.figures if (place := rank(figure)) is not None]
    ranked.sort(key=lambda pair: pair[0])
    return [figure for _, figure in ranked if _enough(comparison, figure)]


def _enough(comparison: Comparison, figure: Figure) -> bool:
    """Whether at least two runs have a finite value."""
    values = [row.figures[figure.key] for row in comparison.rows]
    return sum(value is not None and math.isfinite(value) for value in values) > 1


def _numeric(comparison: Comparison) -> str | None:
    """The one key that tells the runs apart, if its values are numbers, three of them or more."""
    if len(comparison.keys) != 1:
        return None
    values = {row.keys[comparison.keys[0]] for row in comparison.rows} - {None}
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return comparison.keys[0] if numbers and len(values) > 2 else None


def _axis(figure: Figure) -> Axis:
    return Axis(figure.label, figure.show)


def _plain(value: float) -> str:
    return f"{value:g}"


def _link(path: Path, place: Path) -> str:
    """A path as the page says it: relative to where it lies."""
    return Path(os.path.relpath(path, place)).as_posix()
