"""The honest ledger of quantization: which integer products were executed, by the profiler's word and not by intent.

FLOPs are those of linears, 2 M N K each; attention and convolutions are no linears. Integer kernels are oneDNN's
quantized linear (CPU) and torch._int_mm (CUDA; there M counts with its padding). A layer that fell back to float
arithmetic for want of an integer kernel counts as float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from runner.quant.linear import W8A8Linear


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
    for module in model.modules():
        if isinstance(module, W8A8Linear):
            module.prepare()  # choosing a kernel computes products of its own
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        model(**call)
    matmuls = int8_flops = float_flops = 0
    for event in profiler.events() or []:
        if event.name not in ("onednn::qlinear_pointwise", "aten::_int_mm", "aten::linear"):
            continue
        shapes = event.input_shapes
        rows, k = _size(shapes[0][:-1]), shapes[0][-1]
        if event.name == "aten::linear":
            float_flops += 2 * rows * k * shapes[1][0]
            continue
        # The packed weight is opaque; its scales (fifth argument) have one element for each output.
        n = _size(shapes[4]) if event.name.startswith("onednn") else shapes[1][-1]
        matmuls += 1
        int8_flops += 2 * rows * k * n
    return Ledger(matmuls, int8_flops, int8_flops + float_flops)


@torch.no_grad()
def layer_table(model: nn.Module, call: Mapping[str, Any]) -> list[LayerRow]:
    """The linears that one forward of `model` on `call` runs, quantized and float, in the model's order."""
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | W8A8Linear)}
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
        LayerRow(name, calls[name], rows[name], m.in_features, m.out_features, isinstance(m, W8A8Linear))
        for name, m in linears.items()
        if calls[name]
    ]


def _size(shape: Any) -> int:
    return torch.Size(shape).numel()
