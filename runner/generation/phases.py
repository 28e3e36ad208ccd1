"""Where the time of a generation goes: text encoding, each denoising step, decoding, and what is left of the whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from runner.generation.offload import seconds_moving
from runner.generation.steps import Steps
from runner.hardware import Hardware
from runner.model import parts


class Phases:
    """Hooks on a pipeline's parts that read the clock, with all work of the device done, where a phase begins and ends.

    `steps` are seconds of each denoising step, from the first call of the transformer to the end of the solver's step,
    so that neither text nor what lies between the loops of one video is in them; `text`, `encode` and `decode` are
    seconds in all text encoders and in both directions of the autoencoder, `offload` in moving parts to the device and
    back, which is in none of the others. To be entered after `steps`.
    """

    def __init__(self, pipeline: Any, steps: Steps, hardware: Hardware) -> None:
        self.hardware, self._position = hardware, steps
        self.steps: list[float] = []
        self.seconds = {"text": 0.0, "encode": 0.0, "decode": 0.0, "offload": 0.0}
        self._pipeline = pipeline
        self._step_began: float | None = None
        steps.after.append(self._end_of_step)

    def __enter__(self) -> Phases:
        self._moved_before = seconds_moving(self._pipeline)
        self._hooks = [self._pipeline.transformer.register_forward_pre_hook(self._begin_step)]
        for encoder in (part for name, part in parts(self._pipeline).items() if name.startswith("text_encoder")):
            self._hooks += [
                encoder.register_forward_pre_hook(lambda *_: self._begin()),
                encoder.register_forward_hook(lambda *_: self._end("text")),
            ]
        for name in ("encode", "decode"):
            setattr(self._pipeline.vae, name, self._timed(name, getattr(self._pipeline.vae, name)))
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds["offload"] = seconds_moving(self._pipeline) - self._moved_before
        for hook in self._hooks:
            hook.remove()
        for name in ("encode", "decode"):
            delattr(self._pipeline.vae, name)  # the class's own shows again

    def _now(self) -> float:
        """Seconds on a clock that stands still while parts are moved."""
        self.hardware.synchronize()
        return time.perf_counter() - seconds_moving(self._pipeline)

    def _begin(self) -> None:
        self._began = self._now()

    def _end(self, phase: str) -> None:
        self.seconds[phase] += self._now() - self._began

    def _timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            result = function(*args, **kwargs)
            self._end(phase)
            return result

        return timed

    def _begin_step(self, *_: Any) -> None:
        if self._step_began is None:
            self._step_began = self._now()

    def _end_of_step(self, _: int) -> None:
        if self._step_began is not None:
            self.steps.append(self._now() - self._step_began)
        self._step_began = None
