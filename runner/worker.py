"""The bench's door: `python -m runner.worker RUN...` follows the plan of one run folder after another.

The desk has written run.json and plan.json; nothing else reaches this process. The loaded pipeline is kept between runs
while the model does not change.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from runner.desk.store import Store
from runner.hardware import open_device
from runner.progress import Ticker, progress


class Bench:
    """What outlives a run: the device and the float pipeline that is loaded."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._loaded: tuple[str, ...] = ()

    def pipeline(self, config: Mapping[str, Any]) -> Any:
        """The float pipeline of this configuration, loaded once while the model section stays the same."""
        from runner.model import load_pipeline

        wanted = (
            json.dumps(config["model"], sort_keys=True),
            config["sampler"]["sample_method"],
            config["hardware"]["device"],
        )
        if self._pipeline is None or self._loaded != wanted:
            self._pipeline = None  # free the old one before the new one is read
            self._pipeline = load_pipeline(config["model"], wanted[1], wanted[2])
            self._loaded = wanted
        return self._pipeline

    def release(self) -> None:
        """Drop the float pipeline, so that the next stage's memory is its own."""
        self._pipeline = None


class Context:
    """What a stage gets: the configuration, the artifacts it builds on, the bench, and where to report."""

    def __init__(self, run: Path, bench: Bench, console: Console) -> None:
        self.run = run
        self.config: dict[str, Any] = json.loads((run / "run.json").read_text())["config"]
        self.bench, self.console = bench, console
        self.hardware = open_device(self.config["hardware"]["device"])
        self.artifacts: dict[str, Path] = {}
        self.measurements: dict[str, Any] = {}
        self.stage = ""

    def pipeline(self) -> Any:
        return self.bench.pipeline(self.config)

    def progress(self, total: int) -> AbstractContextManager[Ticker]:
        return progress(self.console, self.stage, total)


def follow(run: Path, bench: Bench, console: Console) -> None:
    """Execute the plan of one run folder; artifacts are committed to the store and linked into the folder."""
    context = Context(run, bench, console)
    plan = json.loads((run / "plan.json").read_text())
    store = Store(Path(plan["store"]))
    for planned in plan["stages"]:
        stage, key = planned["stage"], planned["key"]
        if planned["action"] == "skip":
            continue
        write_status(run, "running", stage=stage)
        context.stage, context.measurements = stage, {}
        entry = store.find(stage, key)
        if entry is None:
            start = time.perf_counter()
            draft = store.draft(stage, key)
            importlib.import_module(f"runner.stages.{stage}").run(context, draft)
            entry = store.commit(draft, stage, key)
            measured = {
                "machine": context.hardware.describe(),
                "seconds": time.perf_counter() - start,
                **context.measurements,
            }
            store.write_measurements(stage, key, measured)
        else:
            console.print(f"{stage:<10} reused {key[:12]}", highlight=False)
        context.artifacts[stage] = store.link(entry, run)
        store.link_measurements(stage, key, run)


def write_status(run: Path, state: str, **facts: Any) -> None:
    draft = run / "status.json.part"
    draft.write_text(json.dumps({"state": state, **facts}, indent=2))
    os.replace(draft, run / "status.json")


def main(runs: list[str]) -> int:
    """Follow each run in turn; 1 if any failed. A failure leaves its traceback in the folder, its cause in status.json."""
    bench, failed = Bench(), False
    for run in map(Path, runs):
        console, start = Console(), time.perf_counter()
        try:
            follow(run, bench, console)
            write_status(run, "done", seconds=time.perf_counter() - start)
        except Exception as error:
            failed = True
            (run / "traceback.txt").write_text(traceback.format_exc())
            stage = (
                json.loads((run / "status.json").read_text()).get("stage") if (run / "status.json").exists() else None
            )
            write_status(
                run,
                "failed",
                stage=stage,
                error=f"{type(error).__name__}: {error}",
                seconds=time.perf_counter() - start,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
