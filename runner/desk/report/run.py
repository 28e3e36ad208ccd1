"""The page of one run: SECTIONS lists its parts, each a function of what a stage left in the run folder."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runner import technique
from runner.config import wording
from runner.desk.report.ledger import clip_figures, highlights, ledger, verdict
from runner.desk.report.page import render, write_page
from runner.desk.report.read import read_run
from runner.page.files import Entry
from runner.page.pieces import Section
from runner.page.run import Run
from runner.page.values import number, pick

CLIPS_AT_ONCE = 12  # more of them wait behind a click, or a run of 300 prompts would load 600 videos
TINY = 128  # pixels: clips up to this wide are shown magnified, pixel by pixel
MAGNIFIED = 192
GUTTER = 8  # between the two clips of a pair


def write(run_folder: str | Path) -> Path:
    """Writes RUN/report.html and returns its path. All it refers to lies in the run folder; what is missing it says.

    Raises FileNotFoundError where there is no such folder.
    """
    run = read_run(Path(run_folder))
    sections = [section for part in PARTS for section in part(run)]
    html = render("run.html.jinja", sections, run=run, verdict=verdict(run), highlights=list(highlights(run)))
    return write_page(run.folder / "report.html", html)


def clips(run: Run) -> Iterator[Section]:
    """What dump and sample made to look at."""
    values = {"video": video_box(run), "clips_at_once": CLIPS_AT_ONCE, "clip_figures": clip_figures}
    yield Section("clips.html.jinja", values)


def cost(run: Run) -> Iterator[Section]:
    """What was predicted beside what was measured."""
    groups = [group for group in ledger(run) if group.rows]
    machine = list(flatten(pick(run.measured, "machine") or {}))
    if groups:
        yield Section("cost.html.jinja", {"ledger": groups, "machine": machine})


def stages(run: Run) -> Iterator[Section]:
    """The plan, and what became of it."""
    yield Section("stages.html.jinja")


def files(run: Run) -> Iterator[Section]:
    """All that lies in the folder, and what to take away."""
    yield Section("files.html.jinja", {"exports": exports(run)})


def again(run: Run) -> Iterator[Section]:
    """What it takes to make this run again."""
    values = {"settings": list(settings(run)), "provenance": list(origins(run)), "rerun": run.rerun}
    values["changed"] = sum(len(run.rerun.get(name) or ()) for name in ("differ", "missing", "added"))
    yield Section("again.html.jinja", {"command": shlex.join(run.command), **values})


def techniques(run: Run) -> Iterator[Section]:
    """What each technique shows of itself."""
    for _, rows in technique.rows():
        yield from rows.sections(run)


# In the order of the page. A part that has nothing to show yields nothing.
PARTS: tuple[Callable[[Run], Iterator[Section]], ...] = (clips, cost, techniques, stages, files, again)


def video_box(run: Run) -> dict[str, Any]:
    """The shape of clips on the page, which keeps their place until they load: pixels of the clip, the width that shows
    tiny ones in whole pixels, and the least width of a pair."""
    width, height = int(number(run.config, "model", "width") or 480), int(number(run.config, "model", "height") or 270)
    tiny = width <= TINY
    shown = max(1, MAGNIFIED // width) * width if tiny else width
    pair = (2 if run.arm else 1) * (shown + GUTTER) - GUTTER if tiny else 480 if width <= 320 else 720
    return {"width": width, "height": height, "tiny": tiny, "shown": shown, "pair": pair}


def exports(run: Run) -> list[Entry]:
    """What a user takes away: the exported files, wherever they lie in the folder."""

    def files(entry: Entry) -> Iterator[Entry]:
        for child in entry.entries or ():
            yield from files(child) if child.entries is not None else [child]

    return [e for e in files(run.files) if e.name.startswith("quant_model_") or e.name.startswith("calib_data")]


def settings(run: Run) -> Iterator[tuple[str, str, str]]:
    """The composed configuration: (key, value, where it comes from), what somebody chose before what is a default."""
    rows = [(key, value, str(run.origin.get(key, "default"))) for key, value in flatten(run.config)]
    yield from sorted(rows, key=lambda row: row[2] == "default")


def origins(run: Run) -> Iterator[tuple[str, str]]:
    """provenance.json as rows; every installed package in one of them."""
    for key, value in run.provenance.items():
        if key == "packages" and isinstance(value, Mapping):
            yield key, ", ".join(f"{name} {version}" for name, version in value.items())
        else:
            yield from flatten({key: value})


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (dotted key, text)."""
    for key, child in value.items() if isinstance(value, Mapping) else ():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(child, Mapping) and child:
            yield from flatten(child, name)
        elif isinstance(child, list):
            yield name, "; ".join(map(str, child)) or wording.UNKNOWN
        else:
            text = str(child).lower() if isinstance(child, bool) else str(child)  # as YAML has it
            yield name, wording.UNKNOWN if child is None or child == {} else text
