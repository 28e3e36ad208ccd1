"""What a stage works with: the loaded model, the device, the artifacts before it, and where it reports.

Nothing here imports torch before a stage asks for the model or the device, so a run that reuses everything is quick.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from runner.hardware import Hardware, open_device
from runner.progress import Ticker, progress


def _of_section(keys: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in keys.items() if key.partition(".")[0] == section}


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
        gc.collect()  # modules refer to each other in circles


class Context:
    """What a stage gets: the configuration, its prompts, the artifacts it builds on, the bench, and where to report."""

    def __init__(self, run: Path, bench: Bench, console: Console) -> None:
        self.run = run
        self._config: dict[str, Any] = json.loads((run / "run.json").read_text())["config"]
        self.config = self._config
        self.bench, self.console = bench, console
        self.artifacts: dict[str, Path] = {}
        self.measurements: dict[str, Any] = {}
        self.stage = ""
        self.prompts: dict[str, list[str]] = {}

    def enter(self, planned: Mapping[str, Any]) -> None:
        """Begin a stage of the plan: its name, the configuration as it sees it, and its prompts by what for."""
        self.stage, self.measurements = planned["stage"], {}
        self.prompts = planned["lineage"].get("prompts", {})
        self.config = {
            name: {**section, **_of_section(planned["sets"], name)} if isinstance(section, dict) else section
            for name, section in self._config.items()
        }

    @cached_property
    def hardware(self) -> Hardware:
        """The device of this run; RuntimeError with the reason where it cannot be used."""
        return open_device(self.config["hardware"]["device"])

    def pipeline(self) -> Any:
        """The float pipeline of this run."""
        return self.bench.pipeline(self.config)

    def progress(self, total: int) -> AbstractContextManager[Ticker]:
        """What the stage advances by one for each of `total` steps of its work."""
        return progress(self.console, self.stage, total)
