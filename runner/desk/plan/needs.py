"""What a stage needs of disk and memory, from the configuration and the heads of the weight files alone.

Disk is nearly exact: the tensors that a stage writes are known. Memory is what the weights take and, roughly, what a
forward and a decoding hold at once.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cache import rules as cache
from runner.config.faults import Fault
from runner.config.wording import lacks, plain, size
from runner.desk.plan.forwards import forwards, shared
from runner.hardware.compute import BYTES
from runner.model import headers
from runner.model.checkpoints import shapes_of, weight_files
from runner.model.shapes import Shapes
from runner.quant import cost
from runner.store import machine

if TYPE_CHECKING:
    from runner.desk.plan.graph import PlannedStage
    from runner.store.artifacts import Store

Config = Mapping[str, Any]
BINS = 962  # of a histogram; a test holds the statistics to this number
HEAD = 180  # bytes of a small safetensors file beside its tensors
VIDEO = 0.05  # of an mp4's bytes in those of its frames, at most
PROCESS = 520e6  # bytes of a worker before it loads a model
DECODER = ("decoder.", "lm_head.")  # of a text model of which the encoder is read
EXACT = 1.05  # what names, heads and directories add to the tensors


class Needs:
    """What the stages of one configuration need. None where configuration files, or a place on the hub, do not tell."""

    def __init__(self, config: Config) -> None:
        self.config = config
        hardware, dtype = config["hardware"], config["model"]["dtype"]
        self.item = BYTES[hardware["compute"]]  # of what is computed: latents, calls, activations
        self.stored = BYTES[dtype]  # of what is exported
        self.held = self.stored if hardware["layerwise_casting"] else self.item  # of weights in memory

    @cached_property
    def shapes(self) -> Shapes | None:
        folder = Path(self.config["model"]["checkpoint"])
        try:
            return shapes_of(self.config["model"], folder) if folder.is_absolute() else None
        except (LookupError, OSError, ValueError, TypeError):
            return None  # configuration files that do not tell; whoever loads damaged ones will say what is wrong

    def disk(self, does: str, config: Config, prompts: Mapping[str, Sequence[str]]) -> int | None:
        """Bytes that a stage writes; `config` as the stage sees it."""
        if self.shapes is None:
            return None
        found: float
        if does == "dump":
            found = self._dumped(self.shapes, config, prompts)
        elif does in ("sample", "benchmark"):
            found = len(prompts["text"]) * self._result(self.shapes, does == "benchmark" or config["sample"]["save"])
        elif does == "quantize":
            found = self._exported()
        else:
            return 0  # text
        return int(EXACT * found)

    def memory(self, does: str, config: Config) -> int | None:
        """Bytes of the host (hardware=cpu: of all processes together) or of each device at a stage's peak, about."""
        if self.shapes is None or self._weights is None or does == "calibrate":  # which loads no model
            return None
        branches = (
            2 if config["sampler"]["guidance_scale"] > 1 and config["sampler"]["guidance_batch"] == "joint" else 1
        )
        batch = config["model"]["batch_size"]
        working = self.item * batch * max(self.shapes.forward * branches, self.shapes.decode)
        parts: dict[str, float] = dict(self._weights)
        packed = cost.packed_bytes() if config["hardware"]["device"] == "cpu" else 0
        if does == "quantize":
            parts["transformer"] += self._exported() + self._exported(packed)  # made, then read again and computed with
            if config["hardware"]["compute"] != config["model"]["dtype"]:  # beside the weights as they are
                parts["transformer"] += self._weights["transformer"] * self.stored / self.held
        elif does == "sample" and config["quant"]["scheme"] != "none":
            parts["transformer"] += self._exported(packed)  # beside the float one, to be timed in turn with it
        elif config["quant"]["scheme"] != "none" and does in ("search-cache", "benchmark"):  # one or the other
            parts["transformer"] = max(parts["transformer"], self._exported(packed))
        held = max(parts.values()) if config["hardware"]["offload"] else sum(parts.values())
        if config["hardware"]["device"] == "cpu":
            return int(config["parallel"]["world_size"] * (held + working + PROCESS))
        return int(held + working)

    def _dumped(self, shapes: Shapes, config: Config, prompts: Mapping[str, Sequence[str]]) -> float:
        roles = ("calibration", "trajectory", "verification", "text")
        counts = {role: len(prompts.get(role, ())) for role in roles}
        results = sum(counts.values()) - shared(prompts, config["model"]["batch_size"])
        found = results * self._result(shapes, True)
        found += (sum(counts.values()) - counts["text"]) * self._trajectory(shapes, config)
        per_prompt = self._calls(shapes, config) + self._statistics(shapes, config)
        if cache.searches(config["cache"]):  # how each pair of boundaries between blocks moved, branch by branch
            branches = 2 if config["sampler"]["guidance_scale"] > 1 else 1
            grams = config["recording"]["lags"] * (branches * (shapes.blocks + 1)) ** 2
            found += counts["calibration"] * _steps(config) * (HEAD + 4 * grams)
        return found + counts["calibration"] * per_prompt * (2 if config["dump"]["format"] != "safetensors" else 1)

    def _result(self, shapes: Shapes, video: bool) -> float:
        """Latents, frames and the video of a clip."""
        frames = 3 * math.prod(shapes.frames)
        return 2 * HEAD + self._latents(shapes) + frames * (1 + VIDEO * video)

    def _latents(self, shapes: Shapes) -> int:
        return (4 if shapes.whole_latents else self.item) * math.prod(shapes.latents)

    def _trajectory(self, shapes: Shapes, config: Config) -> float:
        steps = _steps(config)
        return steps * (HEAD + 2 * self._latents(shapes))

    def _calls(self, shapes: Shapes, config: Config) -> float:
        """What the transformer got at each step, of both guidance branches, and the text once."""
        branches = 2 if config["sampler"]["guidance_scale"] > 1 else 1
        steps = _steps(config)
        text = shapes.text[0] * (8 + self.item * shapes.text[1])
        return branches * (steps * self._latents(shapes) + text) + forwards(config) * HEAD

    def _statistics(self, shapes: Shapes, config: Config) -> float:
        """Of each input at each step: two extremes, the largest magnitude of each channel, a histogram of int16."""
        steps = _steps(config)
        return sum(steps * (8 + 4 * channels + 2 * BINS) + 500 for channels in shapes.inputs)

    @cached_property
    def _weights(self) -> dict[str, int] | None:
        """Bytes of each part of the model as it is held; None if one of them is on the hub."""
        found: dict[str, dict[str, int]] = {}
        for name, file in weight_files(self.config).items():
            if not isinstance(file, Path):
                return None
            kinds, elements = found.setdefault(name.partition("/")[0], {}), 0
            for tensor, shape in headers.sizes(file):
                if not (name.startswith("text_encoder") and tensor.startswith(DECODER)):
                    elements += math.prod(shape)
            kinds[file.suffix] = kinds.get(file.suffix, 0) + self.held * elements
        return {part: max(kinds.values()) for part, kinds in found.items()}  # one kind of file is read

    def _exported(self, packed: int = 0) -> float:
        """The transformer with a byte, and `packed` more, for each weight that is quantized."""
        quant, found = self.config["quant"], 0.0
        left_out = self.shapes.recomputed if self.shapes else ()
        for name, file in weight_files(self.config).items():
            if not name.startswith("transformer/") or not isinstance(file, Path):
                continue
            for tensor, shape in headers.sizes(file):
                if tensor in left_out:
                    continue
                layer, _, kind = tensor.rpartition(".")
                linear = kind == "weight" and len(shape) == 2
                chosen = any(fnmatchcase(layer, pattern) for pattern in quant["include"])
                if linear and chosen and not any(fnmatchcase(layer, pattern) for pattern in quant["exclude"]):
                    beside = 2 * self.stored + 4 + (4 if self.stored == 2 else 8)
                    found += (1 + packed) * math.prod(shape) + shape[0] * beside
                else:
                    found += self.stored * math.prod(shape)
        return found


def _steps(config: Config) -> int:
    """Evaluations of the model in one generation, by whatever number of forwards each."""
    return forwards({**config, "sampler": {**config["sampler"], "guidance_batch": "joint"}})


def short_of_disk(planned: Iterable[PlannedStage], store: Store) -> Fault | None:
    """What is said where the disk of the store cannot take what the stages that run, of one job or of many, will
    write."""
    rows = {(row.does, row.key): row for row in planned if row.action == "run"}
    needed, place = sum(row.disk or 0 for row in rows.values()), store.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        needed -= sum(_size(store.begun(*key)) for key in rows)  # parts that are finished
    if needed <= free:
        return None
    by_stage: dict[str, int] = {}
    for row in rows.values():
        by_stage[row.stage] = by_stage.get(row.stage, 0) + (row.disk or 0)
    stages = ", ".join(f"{stage} {size(disk)}" for stage, disk in by_stage.items() if disk)
    return Fault("output", plain(f"expected {size(needed)} free ({stages}), there are {size(free)}"), str(place))


def short_of_memory(planned: Sequence[PlannedStage], config: Config) -> str | None:
    """What is said where a stage that runs on the host probably needs more memory than there is."""
    there = int(str(machine.describe()["memory"]))
    most = max(planned, key=lambda row: (row.action == "run") * (row.memory or 0))
    takes = most.memory or 0
    if config["hardware"]["device"] != "cpu" or not there or most.action != "run" or takes <= there:
        return None
    return f"memory   {most.stage} {lacks(takes, 'this machine', there)}"


def casts_layerwise(config: Config) -> bool:
    """Whether memory forbids to hold the weights in what is computed in, and lets them stay as they are stored."""
    there = int(str(machine.describe()["memory"]))
    hardware = config["hardware"]
    if hardware["device"] != "cpu" or not there or BYTES[hardware["compute"]] <= BYTES[config["model"]["dtype"]]:
        return False
    stages = ["dump", *(["quantize"] if config["quant"]["scheme"] != "none" else []), "sample"]

    def peak(layerwise: bool) -> int:
        as_held = {**config, "hardware": {**hardware, "layerwise_casting": layerwise}}
        needs = Needs(as_held)
        return max(needs.memory(stage, as_held) or 0 for stage in stages)

    whole = peak(False)
    return whole > there and peak(True) < whole


def _size(folder: Path) -> int:
    return sum(os.path.getsize(os.path.join(place, file)) for place, _, files in os.walk(folder) for file in files)
