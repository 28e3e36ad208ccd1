"""The page of one run: SECTIONS lists its parts, each a function of what a stage left in the run folder."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.config import wording
from runner.desk.report.cache import cache
from runner.desk.report.files import Entry
from runner.desk.report.ledger import clip_figures, highlights, ledger, verdict, worst_layers
from runner.desk.report.page import Section, render, write_page
from runner.desk.report.plot import Axis, Point, scatter
from runner.desk.report.read import Run, read_run
from runner.desk.report.values import number, pick

CLIPS_AT_ONCE = 12  # more of them wait behind a click, or a run of 300 prompts would load 600 videos
TINY = 128  # pixels: clips up to this wide are shown magnified, pixel by pixel
MAGNIFIED = 192
GUTTER = 8  # between the two clips of a pair


def write(run_folder: str | Path) -> Path:
    """Writes RUN/report.html and returns its path. All it refers to lies in the run folder; what is missing it says.

    Raises FileNotFoundError where there is no such folder.
    """
    run = read_run(Path(run_folder))
    sections = filter(None, (section(run) for section in SECTIONS))
    html = render("run.html.jinja", sections, run=run, verdict=verdict(run), highlights=list(highlights(run)))
    return write_page(run.folder / "report.html", html)


def clips(run: Run) -> Section:
    """What dump and sample made to look at."""
    values = {"video": video_box(run), "clips_at_once": CLIPS_AT_ONCE, "clip_figures": clip_figures}
    return Section("clips.html.jinja", values)


def cost(run: Run) -> Section | None:
    """What was predicted beside what was measured."""
    groups = [group for group in ledger(run) if group.rows]
    machine = list(flatten(pick(run.measured, "machine") or {}))
    return Section("cost.html.jinja", {"ledger": groups, "machine": machine}) if groups else None


def schedule(run: Run) -> Section | None:
    """The timesteps that a search found, beside the solver's own, and how those that were tried came out."""
    search = run.schedule
    tried = [row for row in search.get("tried", []) if isinstance(row, dict)]
    searched = next((row.get("timesteps") for row in tried if row.get("name") == search.get("chosen")), None)
    if not searched or not search.get("uniform"):
        return None
    points = [Point("", n, t) for n, t in enumerate(searched, 1)]
    axes = Axis("step", "{:.0f}".format), Axis("timestep", "{:.0f}".format)
    svg = scatter(points, *axes, "schedule-plot", joined=True, under=list(enumerate(search["uniform"], 1)))
    values = {
        "steps": len(searched),
        "recorded": len(pick(search, "recorded", "timesteps") or ()),
        "prompts": number(search, "recorded", "prompts"),
        "forwards": number(search, "forwards"),
        "chosen": search["chosen"],
        "tried": [(str(row.get("name")), number(row, "predicted"), number(row, "error")) for row in tried],
    }
    return Section("schedule.html.jinja", {"svg": svg, **values})


def layers(run: Run) -> Section | None:
    """What quantize did to each layer."""
    kept = [layer for layer in run.layers if not layer.quantized]
    return Section("layers.html.jinja", {"worst": worst_layers(run), "kept": kept}) if run.layers else None


def stages(run: Run) -> Section:
    """The plan, and what became of it."""
    return Section("stages.html.jinja")


def files(run: Run) -> Section:
    """All that lies in the folder, and what to take away."""
    return Section("files.html.jinja", {"exports": exports(run)})


def again(run: Run) -> Section:
    """What it takes to make this run again."""
    values = {"settings": list(settings(run)), "provenance": list(origins(run)), "rerun": run.rerun}
    values["changed"] = sum(len(run.rerun.get(name) or ()) for name in ("differ", "missing", "added"))
    return Section("again.html.jinja", {"command": shlex.join(run.command), **values})


# In the order of the page. A section that has nothing to show is None.
SECTIONS: tuple[Callable[[Run], Section | None], ...] = (clips, cost, schedule, cache, layers, stages, files, again)


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
