"""Parts of a pipeline that take turns on the device: the one that works is there, the others wait on the host.

The device then holds the largest part, not all of them. This is done around any pipeline, ours or foreign: a part is
brought by its forward and, an autoencoder, by encode and decode, whose decorator in diffusers asks `_hf_hook`; and the
same attribute tells the pipeline where to put its own tensors. diffusers' enable_model_cpu_offload is not enough: it
follows a fixed order of parts, so that an autoencoder that has encoded a reference stays, and it replaces `forward`, as
others here do.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.hooks import ModelHook
from torch import nn

from runner.hardware import Hardware
from runner.model import parts

M = TypeVar("M", bound=nn.Module)


class Offload(ModelHook):
    """Has the parts of a pipeline take turns on a device. `seconds` is what moving them has taken so far."""

    def __init__(self, pipeline: Any, hardware: Hardware) -> None:
        self.execution_device = torch.device(hardware.DEVICE)
        self.seconds = 0.0
        self._pipeline, self._hardware = pipeline, hardware
        self._at_work: Callable[[], nn.Module | None] = lambda: None  # a weak reference: a part may be replaced

    def watch(self) -> None:
        """Have all parts brought from now on, also those that the pipeline did not have before. None is moved yet."""
        for part in parts(self._pipeline).values():
            if getattr(part, "_hf_hook", None) is not self:
                part._hf_hook = self  # a plain attribute
                part.register_forward_pre_hook(self.pre_forward)

    def pre_forward(self, module: nn.Module, *args: Any, **_: Any) -> None:
        """Bring a part, after all others have gone; nothing is done for the one that worked last."""
        if self._at_work() is module:
            return
        self._hardware.synchronize()
        start = time.perf_counter()
        self._at_work = lambda: None
        with torch.inference_mode(False):  # weights moved under it could not be changed any more
            for part in parts(self._pipeline).values():
                if part is not module:
                    part.to("cpu")
            module.to(self.execution_device)
        self._at_work = weakref.ref(module)
        self._hardware.synchronize()
        self.seconds += time.perf_counter() - start


def on_device(part: M) -> M:
    """A part of a pipeline, brought to the device if it waits on the host: for work with it outside of the pipeline."""
    if (offload := _of(part)) is not None:
        offload.pre_forward(part)
    return part


def seconds_moving(pipeline: Any) -> float:
    """Seconds that moving the parts of a pipeline has taken so far."""
    offload = _of(pipeline.transformer)
    return offload.seconds if offload is not None else 0.0


def _of(part: nn.Module) -> Offload | None:
    hook = getattr(part, "_hf_hook", None)
    return hook if isinstance(hook, Offload) else None
