"""What a stage works with: the loaded model, the device, the artifacts before it, and where it reports.

Nothing here imports torch before a stage asks for the model or the device, so a run that reuses everything is quick.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from runner.bench.progress import Ticker, progress
from runner.hardware import Hardware, open_device
from runner.hardware.compute import holds
from runner.sampler import schedules

if TYPE_CHECKING:
    from torch import nn

M = TypeVar("M", bound="nn.Module")


def _of_section(keys: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in keys.items() if key.partition(".")[0] == section}


class Bench:
    """What outlives a run: what is loaded of the model."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop all that is loaded."""
        self._pipeline: Any = None
        self._offload: Any = None
        self._loaded: tuple[Any, ...] = ()
        self._is_float = False
        gc.collect()  # modules refer to each other in circles

    def pipeline(self, config: Mapping[str, Any]) -> Any:
        """The float pipeline of this configuration. Read once while model, sample method and device stay the same."""
        from runner.parallel.cfg import twinned

        if not self._knows(config) or not self._is_float:
            self._with(config, lambda: twinned(float_transformer, config))
            self._is_float = True
        return self._pipeline

    def quantized(self, config: Mapping[str, Any], export: Path) -> Any:
        """The pipeline around a transformer that comes from exported files and never was in float.

        The float one is dropped first, so that memory is what this one takes; the rest of the pipeline stays.
        """
        from runner.parallel.cfg import twinned

        self._is_float = False
        self._with(config, lambda: twinned(quantized_transformer, config, export))
        return self._pipeline

    def _knows(self, config: Mapping[str, Any]) -> bool:
        return self._pipeline is not None and self._loaded == _identity(config)

    def _with(self, config: Mapping[str, Any], load: Callable[[], Any]) -> None:
        """Have the pipeline of this configuration hold the transformer that `load` reads."""
        from runner.generation.offload import Offload
        from runner.model import load_pipeline, parts

        # A vendor's package makes torch know its device.
        hardware, offload = open_device(config["hardware"]["device"]), config["hardware"]["offload"]
        if self._knows(config):
            self._pipeline.register_modules(transformer=None)  # free the old one before the new one is read
            gc.collect()
            self._pipeline.register_modules(transformer=load())
        else:
            self.clear()
            method = config["sampler"]["sample_method"]
            home = "cpu" if offload else hardware.DEVICE
            self._pipeline = load_pipeline(as_read(config), method, home, load())
            for part in parts(self._pipeline).values():
                computing(part, config)
            self._loaded = _identity(config)
            self._offload = Offload(self._pipeline, hardware) if offload else None
        if self._offload is not None:
            self._offload.watch()


def _identity(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a pipeline is loaded by."""
    hardware = {name: value for name, value in config["hardware"].items() if name != "env"}
    return json.dumps([config["model"], hardware], sort_keys=True), config["sampler"]["sample_method"]


def as_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model section as float parts are read: in what is computed in, if that does not hold the weights' dtype."""
    model, compute = config["model"], config["hardware"]["compute"]
    return {**model, "dtype": model["dtype"] if holds(compute, model["dtype"]) else compute}


def computing(module: M, config: Mapping[str, Any]) -> M:
    """A module of the model, made to compute in what the run computes in, in place."""
    from runner.hardware.casting import DTYPES, cast

    hardware = config["hardware"]
    if hardware["compute"] == as_read(config)["dtype"]:
        return module
    return cast(module, DTYPES[hardware["compute"]], hardware["layerwise_casting"])


def float_transformer(config: Mapping[str, Any]) -> Any:
    """The float transformer of a run on its device."""
    from runner.model import load_transformer

    return computing(load_transformer(as_read(config), config["hardware"]["device"]), config)


def quantized_transformer(config: Mapping[str, Any], export: Path) -> Any:
    """The transformer of an export folder on the run's device, ready to sample; the float weights are not read."""
    from runner.hardware.casting import narrow
    from runner.model import skeleton
    from runner.quant import export as files
    from runner.quant import swap

    model, section = config["model"], as_read(config)
    transformer = swap.apply(skeleton(section), *files.load(export))
    if section["dtype"] != model["dtype"]:
        narrow(transformer, like=skeleton(section))
    transformer = transformer.to(config["hardware"]["device"]).eval().requires_grad_(False)
    return computing(transformer, config)


class Context:
    """What a stage gets: the configuration, its prompts, the artifacts it builds on, the bench, and where to report."""

    def __init__(self, run: Path, bench: Bench, console: Console) -> None:
        self.run = run
        self._config: dict[str, Any] = json.loads((run / "run.json").read_text())["config"]
        self.config = self._config
        self.bench, self.console = bench, console
        self.artifacts: dict[str, Path] = {}
        self.measurements: dict[str, Any] = {}
        self.measured: Mapping[str, Any] = {}  # the same of a time before, where this machine has made the artifact
        self.stage = ""
        self.prompts: dict[str, list[str]] = {}

    def enter(self, planned: Mapping[str, Any]) -> None:
        """Begin a stage of the plan: its name, the configuration as it sees it, and its prompts by what for.

        A stage that comes after the search of a schedule takes what was found for the configuration's own."""
        self.stage, self.measurements = planned["stage"], {}
        self.prompts = planned["lineage"].get("prompts", {})
        self.config = {
            name: {**section, **_of_section(planned["sets"], name)} if isinstance(section, dict) else section
            for name, section in self._config.items()
        }
        if "search-schedule" in planned["needs"]:
            file = self.artifacts["search-schedule"] / schedules.NAME
            self.config["sampler"] = {**self.config["sampler"], "schedule": str(file)}

    @cached_property
    def hardware(self) -> Hardware:
        """The device of this run; RuntimeError with the reason where it cannot be used."""
        return open_device(self.config["hardware"]["device"])

    def pipeline(self) -> Any:
        """The float pipeline of this run."""
        return self.bench.pipeline(self.config)

    def quantized_pipeline(self) -> Any:
        """The same around the transformer that quantize has exported. There is one pipeline: this takes the place of
        the float one."""
        return self.bench.quantized(self.config, self.artifacts["quantize"])

    def say(self, line: str) -> None:
        """Print a line as it is, however wide the terminal."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def progress(self, total: int) -> AbstractContextManager[Ticker]:
        """What the stage advances by one for each of `total` steps of its work."""
        return progress(self.console, self.stage, total)
