"""A `Run` as HTML: what the templates beside this file need, and writing it."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from runner.desk.report import wording
from runner.desk.report.files import Entry
from runner.desk.report.ledger import clip_figures, highlights, ledger, verdict, worst_layers
from runner.desk.report.read import Run, number, pick, read_run

CLIPS_AT_ONCE = 12  # more of them wait behind a click, or a run of 300 prompts would load 600 videos
TINY = 128  # pixels: clips up to this wide are shown magnified, pixel by pixel
MAGNIFIED = 192
GUTTER = 8  # between the two clips of a pair


def write(run_folder: str | Path) -> Path:
    """Writes RUN/report.html and returns its path. All it refers to lies in the run folder; what is missing it says.

    Raises FileNotFoundError where there is no such folder.
    """
    run = read_run(Path(run_folder))
    page = run.folder / "report.html"
    draft = run.folder / f".report.{os.getpid()}.part"
    try:
        draft.write_text(render(run), encoding="utf-8")
        draft.replace(page)
    finally:
        draft.unlink(missing_ok=True)
    return page


def render(run: Run) -> str:
    """The page of one run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("seconds", "size", "share", "decibel", "digits", "count", "points"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["link"] = quote
    return environment.get_template("run.html.jinja").render(
        run=run,
        verdict=verdict(run),
        highlights=list(highlights(run)),
        ledger=[group for group in ledger(run) if group.rows],
        worst=worst_layers(run),
        kept=[layer for layer in run.layers if not layer.quantized],
        video=video_box(run),
        clips_at_once=CLIPS_AT_ONCE,
        clip_figures=clip_figures,
        exports=exports(run),
        settings=list(settings(run)),
        provenance=list(origins(run)),
        machine=list(flatten(pick(run.measured, "machine") or {})),
        command=shlex.join(run.command),
    )


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
