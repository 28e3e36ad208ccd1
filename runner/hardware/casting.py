"""Have a module compute in another dtype than its weights are stored in.

Either all of its weights are cast once, or (layerwise) the large ones stay as they are stored and are cast each time
that their layer computes: less memory, the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.hardware.processor import bf16_feature

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # as the configuration has them
LARGE = 2**16  # elements of a weight that stays as it is stored; smaller ones are cast for good


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the matrices and convolutions of a region where the device multiplies it fast, else nothing."""
    fast = device.type != "cpu" or bf16_feature() is not None
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


M = TypeVar("M", bound=nn.Module)


def cast(module: M, dtype: torch.dtype, layerwise: bool = False) -> M:
    """Have `module` compute in a wider `dtype`, in place; returns it. Quantized layers stay as they are."""
    for layer in list(module.modules()):
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if not _is_cast(layer, tensor, dtype):
                continue
            if layerwise and isinstance(tensor, nn.Parameter) and tensor.numel() >= LARGE:
                _cast_when_read(layer, name, dtype)
            else:
                assert tensor is not None
                tensor.data = tensor.data.to(dtype)
    if layerwise and getattr(module, "dtype", dtype) != dtype:
        _specialize(module, {"dtype": property(lambda self: dtype)})
    return module


def narrow(module: nn.Module, like: nn.Module) -> None:
    """Cast the parameters of `module`, in place, to the dtypes that those of the same names have in `like`."""
    parameters = dict(module.named_parameters())
    for name, parameter in like.named_parameters():
        if name in parameters:
            parameters[name].data = parameters[name].data.to(parameter.dtype)


def _is_cast(layer: nn.Module, tensor: Tensor | None, dtype: torch.dtype) -> bool:
    carries_bits = "weight" in layer._buffers  # of a quantized layer, whose scales are what they are
    return tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype and not carries_bits


def _cast_when_read(layer: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Have reading a layer's parameter give it in `dtype`; names, state and modules stay as they were."""

    def read(self: nn.Module) -> Tensor:
        stored = self._parameters[name]
        assert stored is not None
        return stored.to(dtype)

    also: dict[str, Any] = {}
    if isinstance(layer, nn.Embedding):  # a vocabulary is large, and few of its rows are looked up
        also["forward"] = _looked_up(dtype)
    _specialize(layer, {name: property(read), **also})


def _looked_up(dtype: torch.dtype) -> Callable[[nn.Embedding, Tensor], Tensor]:
    def forward(self: nn.Embedding, input: Tensor) -> Tensor:
        table = self._parameters["weight"]
        assert table is not None
        return F.embedding(input, table, self.padding_idx).to(dtype)

    return forward


def _specialize(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Give one module attributes that its class does not have, under its class's own name."""
    kind = type(module)
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (kind,), {**named, **attributes})
