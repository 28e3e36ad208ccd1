"""A scheme that lives in tests alone: int8 weights with a scale for each output channel, inputs as they are.

s_w[n] = max(max_k |W[n,k]| / 127, eps)      Wq = round(W / s_w)      y = x @ (Wq * s_w)^T + b
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.quant.linear import Compute, QuantizedLinear
from runner.quant.observers import EPS
from runner.quant.parts import FLOATS, Part, stored

PARTS = {
    "weight": Part("n k", (torch.int8,)),
    "bias": Part("n", "weight_scale", optional=True, is_float=True),
    "weight_scale": Part("n 1", FLOATS),
}


def quantize_linear(name: str, linear: nn.Linear, calibrated: None) -> dict[str, Tensor]:
    weight = linear.weight.detach().float()
    scale = stored(name, "weight_scale", (weight.abs().amax(1, keepdim=True) / 127).clamp(min=EPS), linear.weight.dtype)
    parts = {"weight": torch.round(weight / scale.float()).clamp(-127, 127).to(torch.int8), "weight_scale": scale}
    return parts if linear.bias is None else parts | {"bias": linear.bias.detach()}


class Linear(QuantizedLinear):
    weight_scale: Tensor

    def bind(self, x: Tensor) -> tuple[Compute, int]:
        def compute(x: Tensor) -> Tensor:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.dequantized_weight().to(x.dtype), bias)

        return compute, 0

    def dequantized_weight(self) -> Tensor:
        return self.weight * self.weight_scale.float()
