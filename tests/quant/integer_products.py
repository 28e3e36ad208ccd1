"""What quantized linears are held to: operands, the integers in int64, and the bare operators on extreme inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from runner.quant.observers import Range

Operands = tuple[Tensor, Tensor, Tensor, Tensor]
RANGE = Range(-5.0, 5.0)  # of the inputs of `float_linear`


def operands(m: int, k: int, n: int, seed: int = 0, extreme: bool = False) -> Operands:
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape: int) -> Tensor:
        drawn = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        return torch.where(drawn < 0, -128, 127).to(torch.int8) if extreme else drawn

    quant_bias = torch.randint(-(10**6), 10**6, (n,), generator=generator, dtype=torch.int32)
    deq_scale = torch.rand(n, generator=generator) * 1e-3 + 1e-6
    return integers(m, k), integers(n, k), quant_bias, deq_scale


def integers_of(xq: Tensor, weight: Tensor, quant_bias: Tensor) -> np.ndarray:
    return xq.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T + quant_bias.numpy()


def restated(xq: Tensor, weight: Tensor, quant_bias: Tensor, deq_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The common group's bytes: int64 to float32, times the scale in float64, rounded to float32, then to dtype."""
    total = integers_of(xq, weight, quant_bias).astype(np.float32).astype(np.float64)
    product = (total * deq_scale.numpy().astype(np.float64)).astype(np.float32)  # 24 by 24 bits: exact before that
    return torch.from_numpy(product).to(dtype)


def raw_onednn(xq: Tensor, weight: Tensor) -> np.ndarray:
    """The bare operator, without bias or scale."""
    n = weight.shape[0]
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    u = (xq.to(torch.int16) + 128).to(torch.uint8)
    ones, zeros = torch.ones(n), torch.zeros(n, dtype=torch.int32)
    op = torch.ops.onednn.qlinear_pointwise.default
    return op(u, 1.0, 128, packed, ones, zeros, torch.zeros(n), 1.0, 0, torch.float32, "none", [], "").numpy()


def raw_int_mm(xq: Tensor, weight: Tensor) -> np.ndarray:
    return torch._int_mm(xq, weight.t()).numpy()


def extremes() -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and weights at both ends, in several patterns, whose sums are within 2^24."""
    for m, k, n in [(32, 64, 32), (48, 256, 40), (160, 576, 144)]:
        yield from [
            (torch.full((m, k), 127, dtype=torch.int8), torch.full((n, k), 127, dtype=torch.int8)),
            (torch.full((m, k), 127, dtype=torch.int8), torch.full((n, k), -128, dtype=torch.int8)),
            (torch.full((m, k), -128, dtype=torch.int8), torch.full((n, k), 127, dtype=torch.int8)),
            operands(m, k, n, extreme=True)[:2],
            operands(m, k, n)[:2],
        ]


def right(raw: Callable[[Tensor, Tensor], np.ndarray], only: Callable[[Tensor], Tensor] = lambda w: w) -> bool:
    """Whether a bare operator gets all extreme products right, of weights that `only` lets through."""
    return all(
        np.array_equal(raw(xq, only(weight)), integers_of(xq, only(weight), torch.zeros(1, dtype=torch.int32)))
        for xq, weight in extremes()
    )


def keeps_odd_sums(raw: Callable[[Tensor, Tensor], np.ndarray]) -> bool:
    """Whether a bare operator has sums that are odd and beyond 2^24 before the inputs' zero point is taken out."""
    right = []
    for k in (2032, 2048):  # with AMX the one is computed otherwise than the other, and wrong
        xq, weight = torch.full((32, k), 127, dtype=torch.int8), torch.full((32, k), 63, dtype=torch.int8)
        xq[:, 0] = 126
        right.append(np.array_equal(raw(xq, weight), integers_of(xq, weight, torch.zeros(1, dtype=torch.int32))))
    return all(right)


def float_linear() -> tuple[nn.Linear, Tensor]:
    """A layer to be quantized, and inputs of it."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(144, 96).requires_grad_(False)
    for parameter in linear.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return linear, torch.randn(2, 80, 144, generator=generator)
