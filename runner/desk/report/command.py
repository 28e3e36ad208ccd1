"""`runner report RUN...`: the page of a run, of a sweep, or of any runs side by side; their figures as CSV or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.desk.report.compare import SWEEP, as_csv, as_json, compare, members
from runner.desk.report.many import write_many
from runner.desk.report.run import write


def main(arguments: Sequence[str]) -> int:
    """Write or print what is asked for; the exit status: 0, or 2 where a folder is none of a run."""
    parser = argparse.ArgumentParser(
        prog="runner report",
        description="Write the page of a run folder or of a sweep's folder into it; of several folders, one page that "
        "compares all their runs.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="a run folder or a sweep's folder")
    parser.add_argument("--output", type=Path, metavar="PAGE", help="where to write the page of several runs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print one line a run instead: what differs, and the figures")
    form.add_argument("--json", action="store_true", help="print the same as JSON, with every figure")
    asked = parser.parse_args(arguments)
    try:
        found = [run for folder in asked.folders for run in members(folder)]
        runs = list({run.resolve(): run for run in found}.values())  # a sweep and one of its jobs are no two runs
        if asked.csv or asked.json:
            compared = compare(runs)
            sys.stdout.write(as_csv(compared) if asked.csv else f"{as_json(compared)}\n")
            return 0
        print(f"page     {_page(asked.folders, runs, asked.output)}")
    except OSError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


def write_sweep(folder: Path) -> Path:
    """Write the page of a sweep's folder into it and return it. Raises FileNotFoundError if it is none."""
    told = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    return write_many(members(folder), folder / "report.html", str(told.get("name")), told.get("command") or ())


def _page(folders: Sequence[Path], runs: Sequence[Path], output: Path | None) -> Path:
    if len(folders) > 1 or output is not None:
        for run in runs:
            write(run)
        return write_many(runs, output or Path("report.html"), f"{len(runs)} runs")
    (folder,) = folders
    if not (folder / SWEEP).is_file():
        return write(folder)
    for run in runs:
        write(run)
    return write_sweep(folder)
