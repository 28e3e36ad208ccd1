"""A run as an object: make one as the terminal would, or open an old one's folder.

import runner
run = runner.run("osp12_w8a8", "seed=3")
run.metrics, run.videos, run.paths["page"]
old = runner.open_run("outputs/osp12_w8a8/2026-11-21_18-24-29")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from runner import __main__ as door
from runner.config.faults import Fault, Refused
from runner.desk.report import read
from runner.desk.report.figures import FIGURES
from runner.desk.run import job

FILES = {
    "page": "report.html",
    "run": "run.json",
    "plan": "plan.json",
    "provenance": "provenance.json",
    "status": "status.json",
    "log": "run.log",
    "contact_sheet": "sample/contact_sheet.png",
    "metrics": "sample/metrics.json",
    "weights": "quantize/quant_model_weight_w8a8.safetensors",
    "description": "quantize/quant_model_description_w8a8.json",
    "schedule": "search-schedule/searched_schedule.txt",
    "cache": "search-cache/cache_config.json",
}
ONE_RUN = "expected one run that is made here; in a terminal `python -m runner` does the rest"


@dataclass(frozen=True)
class Video:
    """One prompt's videos (of a model of images: pictures). `reference` is the float one; None where there is none."""

    prompt: str
    seed: int | None
    reference: Path | None
    result: Path | None


@dataclass(frozen=True)
class Run:
    """A run folder. What it has is read when it is first asked for."""

    folder: Path

    @cached_property
    def read(self) -> read.Run:
        """All that the page says of it; what is missing is in its `gaps`."""
        return read.read_run(self.folder)

    @property
    def state(self) -> str:
        """done, failed, running, interrupted or waiting."""
        return self.read.state

    @property
    def config(self) -> dict[str, Any]:
        """The configuration by section, as run.json has it."""
        return dict(self.read.config)

    @property
    def paths(self) -> dict[str, Path]:
        """The files that there are, by what they are, and the folder of each stage by its name."""
        files = {name: self.folder / path for name, path in FILES.items() if (self.folder / path).is_file()}
        stages = {one.name: self.folder / one.name for one in self.read.stages if (self.folder / one.name).is_dir()}
        return {"folder": self.folder, **stages, **files}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row for each prompt: index, prompt, seed, and its figures in sample/metrics.json."""
        return [
            {"index": index, "prompt": clip.prompt, "seed": clip.seed, **clip.figures}
            for index, clip in enumerate(self.read.clips)
        ]

    @property
    def figures(self) -> dict[str, float]:
        """What runs are compared by, of the whole run: seconds, speed, psnr_db and so on, those that it has."""
        values = ((figure.key, figure.read(self.read)) for figure in FIGURES)
        return {key: value for key, value in values if value is not None}

    @property
    def videos(self) -> list[Video]:
        """The videos in the order of the prompts."""

        def path(name: str | None) -> Path | None:
            return None if name is None else self.folder / name

        return [Video(clip.prompt, clip.seed, path(clip.reference), path(clip.result)) for clip in self.read.clips]

    def frame(self) -> Any:
        """`metrics` as a pandas DataFrame. Raises ImportError where pandas is not installed."""
        import pandas

        return pandas.DataFrame(self.metrics)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.state})"


def run(recipe: str, *settings: str) -> Run:
    """Make a run as `python -m runner +recipe=RECIPE SETTINGS...` does, and return it when it is done.

    `recipe` may be a first setting as well ("model=diffusers"). Stages that are stored are reused. Raises Refused with
    all faults where it cannot run, RunFailed where it was started and failed, and KeyboardInterrupt.
    """
    first = recipe if "=" in recipe else f"+recipe={recipe}"
    return Run(_folder([first, *settings]).resolve())


def open_run(folder: str | PathLike[str]) -> Run:
    """The run of a folder that an earlier run has left, whatever became of it. Raises FileNotFoundError if none has."""
    place = Path(folder)
    if not (place / "run.json").is_file():
        raise FileNotFoundError(f"{place} is no run folder: it has no run.json")
    return Run(place.resolve())


def _folder(arguments: Sequence[str]) -> Path:
    """The folder of the run that these arguments ask for, when it is done."""
    if flags := [word for word in arguments if word.startswith("-")]:
        raise Refused([Fault(flag, ONE_RUN) for flag in flags])
    try:
        composed = door.compose(arguments)
    except door.Uncomposed as reason:
        fault = reason.args[0]
        raise Refused([fault if isinstance(fault, Fault) else Fault("configuration", str(fault))]) from reason
    if len(composed) != 1 or composed[0].swept:
        raise Refused([Fault("hydra.mode", ONE_RUN)])
    (one,) = composed
    try:
        ready = job.prepare(one.composed, one.overrides)
        if asked := [key for key in ("show", "launch") if ready.config[key] is not None]:
            raise Refused([Fault(key, ONE_RUN, ready.config[key]) for key in asked])
        made = job.follow(ready, one.folder)
    finally:
        job.discard_if_empty(one.folder)
    assert made is not None, "a run that is neither shown nor printed has a folder"
    return made
