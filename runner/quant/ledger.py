"""The honest ledger of quantization: which products of 8-bit integers were executed, by what ran and not by intent.

FLOPs are those of linears, 2 M N K each, whatever a kernel pads or splits; attention and convolutions are no linears.
A product counts as int8 if its operands are 8-bit integers and its sums exact, whatever unit multiplied them: that is
chosen by time (runner.quant.kernels), so it is a measurement, and this a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from runner.quant.linear import QuantizedLinear


@dataclass(frozen=True)
class Ledger:
    """int8_matmuls: how many were executed; FLOPs of these and of all linears; their share, 0 to 1."""

    int8_matmuls: int
    int8_flops: int
    linear_flops: int

    @property
    def int8_share(self) -> float:
        return self.int8_flops / self.linear_flops if self.linear_flops else 0.0


@dataclass(frozen=True)
class LayerRow:
    """One linear of the model in one forward: calls of [M, K] @ [K, N] (M of all calls together)."""

    layer: str
    calls: int
    m: int
    k: int
    n: int
    quantized: bool

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n


@torch.no_grad()
def count(model: nn.Module, call: Mapping[str, Any]) -> Ledger:
    """Run one forward of `model` on `call` (keyword arguments) under the profiler and read off its linear products."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if not all(layer.is_prepared for layer in layers):
        model(**call)  # choosing kernels computes products of its own
    int8 = [layer for layer in layers if layer.multiplies_int8]
    with _calls(int8) as calls, profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        model(**call)
    int8_flops = linear_flops = sum(calls.values())
    for event in profiler.events() or []:
        if event.name == "aten::linear" and not any(above.name in calls for above in _ancestors(event)):
            linear_flops += 2 * _size(event.input_shapes[0]) * event.input_shapes[1][0]
    return Ledger(len(calls), int8_flops, linear_flops)


@contextmanager
def _calls(layers: Iterable[QuantizedLinear]) -> Iterator[dict[str, int]]:
    """FLOPs of each call of these layers, under the name by which the profiler tells what is done in it."""
    calls, running = dict[str, int](), list[record_function]()

    def before(layer: QuantizedLinear, args: tuple[Tensor, ...]) -> None:
        name = f"int8 linear {len(calls)}"
        calls[name] = 2 * args[0].numel() * layer.out_features
        running.append(record_function(name))
        running[-1].__enter__()

    def after(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    hooks = [hook for m in layers for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _ancestors(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


@torch.no_grad()
def layer_table(model: nn.Module, call: Mapping[str, Any]) -> list[LayerRow]:
    """The linears that one forward of `model` on `call` runs, quantized and float, in the model's order."""
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | QuantizedLinear)}
    calls, rows = dict.fromkeys(linears, 0), dict.fromkeys(linears, 0)

    def observe(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            rows[name] += _size(args[0].shape[:-1])

        return hook

    hooks = [module.register_forward_pre_hook(observe(name)) for name, module in linears.items()]
    try:
        model(**call)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        LayerRow(name, calls[name], rows[name], m.in_features, m.out_features, isinstance(m, QuantizedLinear))
        for name, m in linears.items()
        if calls[name]
    ]


def _size(shape: Any) -> int:
    return torch.Size(shape).numel()
