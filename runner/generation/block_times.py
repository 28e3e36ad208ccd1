"""How long each block of a transformer takes, and all of a step, while a generation runs."""

from __future__ import annotations

import statistics
from typing import Any

from runner.generation.steps import Steps
from runner.hardware import Hardware
from runner.model import blocks

TIMED = 8  # steps of a generation whose blocks are timed: on an accelerator each reading waits for the device


class BlockTimes:
    """Hooks on the declared blocks that read the device's clock at some steps, evenly spread, of one generation after
    another. The first step is never timed: it warms up."""

    def __init__(self, pipeline: Any, hardware: Hardware, num_steps: int) -> None:
        self.names, self.hardware = blocks(pipeline), hardware
        self._blocks = [pipeline.transformer.get_submodule(name) for name in self.names]
        stride = max(1, (num_steps - 1) // TIMED)
        self._timed = set(range(1, num_steps, stride))
        self._seconds: list[list[float]] = [[] for _ in self.names]  # by block and timed step, all calls of it
        self._steps: list[float] = []

    def watch(self, steps: Steps) -> BlockTimes:
        """Time the generation that `steps` follows; to be entered after it."""
        self.steps = steps
        steps.after.append(self._end_of_step)
        return self

    def __enter__(self) -> BlockTimes:
        self._step_began = 0.0
        self._hooks = []
        for index, block in enumerate(self._blocks):
            self._hooks += [
                block.register_forward_pre_hook(self._enter),
                block.register_forward_hook(self._leave(index)),
            ]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _end_of_step(self, position: int) -> None:
        if position in self._timed:
            self._steps.append(self.hardware.clock() - self._step_began)
        if position + 1 in self._timed:
            for seconds in self._seconds:
                seconds.append(0.0)
            self._step_began = self.hardware.clock()

    def _enter(self, *_: Any) -> None:
        if self.steps.position in self._timed:
            self._block_began = self.hardware.clock()

    def _leave(self, index: int) -> Any:
        def hook(*_: Any) -> None:
            if self.steps.position in self._timed:
                self._seconds[index][-1] += self.hardware.clock() - self._block_began

        return hook

    def summary(self) -> dict[str, Any]:
        """Medians over the timed steps, in seconds: of each block (both guidance branches together), of a whole step.
        {} where no step was timed."""
        if not self._steps:
            return {}
        return {
            "block_seconds": [statistics.median(seconds) for seconds in self._seconds],
            "step_seconds": statistics.median(self._steps),
            "blocks": self.names,
            "steps_timed": len(self._steps),
        }
