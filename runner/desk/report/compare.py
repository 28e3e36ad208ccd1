"""Runs side by side: what differs in what they were told, and in what came out."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.faults import spell
from runner.config.precedence import leaves
from runner.desk.report.figures import FIGURES
from runner.desk.report.read import read_run
from runner.page.pieces import Figure
from runner.page.run import Run

SWEEP = "sweep.json"  # in a sweep's folder: its command, and its jobs' folders in order


@dataclass(frozen=True)
class Row:
    """One run of several: what to call it, and its values of the keys and figures that differ (None: it has none)."""

    label: str
    run: Run
    keys: Mapping[str, Any]
    figures: Mapping[str, float | None]

    @property
    def cause(self) -> str:
        """Why there is no result; empty where there is one."""
        return (self.run.error or "").strip() if self.run.state != "done" else ""


@dataclass(frozen=True)
class Comparison:
    """Several runs in order, and which keys and figures tell them apart; `same`: the figures that do not.

    A run that did not finish has few figures, and that is no difference between the others.
    """

    rows: Sequence[Row]
    keys: Sequence[str]
    figures: Sequence[Figure]
    same: Sequence[tuple[Figure, float]]


def members(folder: Path) -> list[Path]:
    """The run folders that a folder stands for: a sweep's jobs, or itself. FileNotFoundError if it is neither."""
    try:
        jobs = json.loads((folder / SWEEP).read_text(encoding="utf-8"))["jobs"]
        return [folder / str(job) for job in jobs if (folder / str(job)).is_dir()]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FileNotFoundError(f"{folder / SWEEP} cannot be read: {error}") from error
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(f"{folder} is no run folder and no sweep's: it has neither run.json nor {SWEEP}")
    return [folder]


def compare(folders: Sequence[Path]) -> Comparison:
    """What tells these runs apart. Raises FileNotFoundError where one is no folder."""
    runs = [read_run(folder) for folder in folders]
    settings = [{key: value for key, value in leaves(run.config) if key != "output"} for run in runs]
    names = dict.fromkeys(key for told in settings for key in told)
    keys = [key for key in names if _differ([told[key] for told in settings if key in told])]
    values = {figure: [figure.read(run) for run in runs] for figure in FIGURES}
    there = {
        figure: [value for run, value in zip(runs, row, strict=True) if value is not None or run.state == "done"]
        for figure, row in values.items()
    }
    varied = [figure for figure in FIGURES if _differ(there[figure])]
    rows = [
        Row(
            label,
            run,
            {key: told.get(key) for key in keys},
            {figure.key: values[figure][place] for figure in varied},
        )
        for place, (label, run, told) in enumerate(zip(_labels(folders), runs, settings, strict=True))
    ]
    return Comparison(
        rows, keys, varied, [(f, v[0]) for f, v in there.items() if f not in varied and v and v[0] is not None]
    )


def as_csv(comparison: Comparison) -> str:
    """One line a run: its folder, state and cause, the keys that differ, and each figure that any has, as numbers."""
    figures = [figure for figure in FIGURES if any(figure.read(row.run) is not None for row in comparison.rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "state", "cause", *comparison.keys, *(figure.key for figure in figures)])
    for row in comparison.rows:
        told = ["" if row.keys[key] is None else spell(row.keys[key]) for key in comparison.keys]
        values = ["" if (value := figure.read(row.run)) is None else repr(value) for figure in figures]
        writer.writerow([str(row.run.folder), row.run.state, row.cause, *told, *values])
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """The same as a list of objects, with every figure there is; infinity (no difference) is the text "inf"."""
    rows = []
    for row in comparison.rows:
        figures = {figure.key: figure.read(row.run) for figure in FIGURES}
        rows.append(
            {
                "run": str(row.run.folder),
                "name": row.run.name,
                "state": row.run.state,
                "cause": row.cause,
                "differs": dict(row.keys),
                "figures": {key: "inf" if value == math.inf else value for key, value in figures.items()},
            }
        )
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values[1:])


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len({*parts}):
            break
    return labels if parts else []
