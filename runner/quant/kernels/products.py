"""How the integer product of a linear is computed: the only place that knows kernels.

Every kernel is a function bind(weight, quant_bias, deq_scale) -> Bound, and its product is

    product(xq int8 [..., K], dtype) = ((xq @ weight^T + quant_bias) * deq_scale) in dtype [..., N]

with exact integers. weight int8 [N, K], quant_bias int32 [N], deq_scale float32 [N]. Kernels of COMMON round alike: the
exact integer to float32, its product with the scale to float32, that to dtype. So they give the same bytes. `onednn`
rounds in an order of its own: at most two roundings of 2^-24, each relative to the larger of the two terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Bound(NamedTuple):
    """A kernel with its own layout of a layer's weights, which takes `packed_bytes` beside them."""

    product: Callable[[Tensor, torch.dtype], Tensor]
    packed_bytes: int


Kernel = Callable[[Tensor, Tensor, Tensor], Bound]
Part = Callable[[Tensor], Tensor]

LARGEST = 2**24  # float32 holds every integer up to here
BLOCK = 64  # columns: slices of K are multiples of it
ROWS = 64  # of a weight at a time, where there are intermediate results
ALIGNED = 8  # oneDNN halves some K (258 to 768) wherever that is: through a pair, if it is not a multiple of 4


def onednn(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Bound:
    """oneDNN's quantized linear on a CPU: int8 instructions, bias and scales fused.

    Its fast path wants unsigned inputs (signed ones fall to a reference kernel some 3000 times slower): q + 128, with a
    zero point of 128 that oneDNN takes out of the integer sum. So a product takes inputs that are uint8 already, too.
    Operators as registered since torch 2.2. Without VNNI or AMX it adds pairs of products in 16 bits, which saturate.
    """
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    bias = deq_scale * quant_bias
    zero_points = torch.zeros_like(quant_bias)

    def product(xq: Tensor, dtype: torch.dtype) -> Tensor:
        native = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        y = _qlinear(_unsigned(xq), packed, deq_scale, zero_points, bias, native)
        return y if dtype == native else y.to(dtype)

    return Bound(product, weight.numel())


def int_mm(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Bound:
    """torch._int_mm: int8 x int8 -> int32, then one pass for bias and scale.

    CUDA wants more than 16 rows, and K and N that are multiples of 8; the CPU's is wrong for K = 1 (torch 2.13). So odd
    sizes are padded with zeros, which add nothing to the sums. Without VNNI or AMX the CPU's is a reference loop.
    """
    (n, k), rows = weight.shape, 32 if weight.is_cuda else 1
    transposed = F.pad(weight, (0, -k % 8, 0, -n % 8)).t() if k % 8 or n % 8 else weight.t()

    def product(xq: Tensor, dtype: torch.dtype) -> Tensor:
        x = xq.reshape(-1, k)
        m = x.shape[0]
        if k % 8 or m < rows:
            x = F.pad(x, (0, -k % 8, 0, max(0, rows - m)))
        total = torch._int_mm(x, transposed)[:m, :n] + quant_bias
        return (total * deq_scale).to(dtype).reshape(*xq.shape[:-1], n)

    return Bound(product, transposed.numel() if k % 8 or n % 8 else 0)


def float_kept(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Bound:
    """The same integers by float32 arithmetic, for any device, with the weights kept in float32.

    Float32 holds every partial sum of a slice exactly (TF32 and bfloat16 inputs too: they hold eight bits).
    """
    return _sliced(_float_part, weight, quant_bias, deq_scale)


def carries(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Bound:
    """oneDNN's quantized linear where it saturates, with weights that never take it so far.

    There it adds the products of neighbors, columns 2j and 2j + 1, in signed 16 bits: exact if and only if what the two
    weights sum to lies within 128, since 255 * 128 < 2^15 <= 255 * 129. What a pair has above is carried: taken from
    its first weight into one more column that gets the same input, and so on with the pairs of such columns. K grows by
    half for weights that are about normal, and hardly ever doubles. `_sliced` adds the scale. A slice whose sums are
    wrong all the same is left to float32.
    """

    def part(weight: Tensor, bias: Tensor | None) -> tuple[Part, int]:
        columns, takes = _carried(weight)
        packed = torch.ops.onednn.qlinear_prepack(columns, None)
        n, k = weight.shape
        ones, zero_points = torch.ones(n), torch.zeros(n, dtype=torch.int32)
        bias = torch.zeros(n) if bias is None else bias

        def product(x: Tensor) -> Tensor:
            levels = [_padded(_unsigned(x), k % 2)]
            for take in takes:
                levels.append(take(levels[-1]))
            if missing := columns.shape[1] - sum(level.shape[-1] for level in levels):
                levels.append(levels[0].new_zeros((*x.shape[:-1], missing)))
            inputs = torch.cat(levels, dim=-1) if len(levels) > 1 else levels[0]
            return _qlinear(inputs, packed, ones, zero_points, bias, torch.float32)

        # With inputs of 255 every pair that can saturate does, whichever columns oneDNN has paired.
        total = product(torch.full((4, k), 127, dtype=torch.int8))
        if not bool((total == 127 * weight.sum(dim=1, dtype=torch.int32) + bias).all()):
            exact, taken = _float_part(weight, bias)
            return lambda x: exact((_unsigned(x) ^ 128).view(torch.int8)), taken
        return product, columns.numel()

    return _sliced(part, weight, quant_bias, deq_scale)


def _float_part(weight: Tensor, bias: Tensor | None) -> tuple[Part, int]:
    kept = weight.float()
    return lambda x: F.linear(x.float(), kept, bias), 4 * kept.numel()


FUSED: dict[str, Kernel] = {"onednn": onednn}
COMMON: dict[str, Kernel] = {"carries": carries, "int_mm": int_mm, "float_kept": float_kept}
ONEDNN = ("onednn", "carries")  # these need oneDNN and a CPU, and take uint8


def _carried(weight: Tensor) -> tuple[Tensor, list[Part]]:
    """Columns int8 [N, K'] without a pair beyond 128, and what makes the inputs of each further level of the last."""
    level = F.pad(weight, (0, weight.shape[1] % 2))  # a copy
    levels, takes = [], list[Part]()
    while True:
        excess = torch.empty_like(level[:, ::2])
        for each, above in zip(level.split(ROWS), excess.split(ROWS), strict=True):  # 16 bits of a few rows: in cache
            wide = each.to(torch.int16)
            pairs = wide[:, ::2] + wide[:, 1::2]
            above.copy_(pairs.sub_(pairs.clamp(-128, 128)))
            each[:, ::2] -= above
        levels.append(level)
        carrying = (excess.amax(dim=0) | excess.amin(dim=0)).nonzero().flatten()
        if not len(carrying):
            columns = torch.cat(levels, dim=1)
            return _padded(columns, -columns.shape[1] % ALIGNED), takes
        odd = len(carrying) % 2  # every level is whole pairs
        if 2 * len(carrying) > excess.shape[1]:
            odd = excess.shape[1] % 2
            takes.append(lambda x, odd=odd: _padded(_first_of_pairs(x), odd))  # type: ignore[misc]
        else:
            excess, chosen = excess[:, carrying], 2 * torch.cat([carrying, carrying[:odd]])
            takes.append(lambda x, chosen=chosen: x.index_select(-1, chosen))  # type: ignore[misc]
        level = _padded(excess, odd)


def _padded(x: Tensor, columns: int) -> Tensor:
    return F.pad(x, (0, columns)) if columns else x


def _first_of_pairs(x: Tensor) -> Tensor:
    """x[..., ::2] of uint8, several times faster: the low byte of each two (all that oneDNN knows put it first)."""
    return x.contiguous().view(torch.int16).to(torch.uint8)


def _sliced(
    part: Callable[[Tensor, Tensor | None], tuple[Part, int]], weight: Tensor, quant_bias: Tensor, deq_scale: Tensor
) -> Bound:
    """A product by slices of K, each so short that float32 holds any sum of its products, of whatever inputs.

    `part` makes the product of a slice, xq [..., k] -> float32 [..., N], that adds the bias it is given. Mostly one
    slice does, with the bias in it: one pass for the scale is then left. Slices are added as integers.
    """
    largest = int(quant_bias.abs().max())
    inside = 0 <= largest <= LARGEST // 2  # abs of -2^31 is negative
    sizes = _sizes(weight, (LARGEST - largest * inside) // 128)
    bias = quant_bias.float() if inside else None
    made = [part(w, None if i else bias) for i, w in enumerate(weight.split(sizes, dim=1))]
    parts, packed_bytes = [one for one, _ in made], sum(taken for _, taken in made)

    def product(xq: Tensor, dtype: torch.dtype) -> Tensor:
        if len(parts) == 1 and inside:
            total = parts[0](xq)
        else:
            integers = [one(x).to(torch.int32) for one, x in zip(parts, xq.split(sizes, dim=-1), strict=True)]
            for other in integers[1:]:
                integers[0] += other
            total = (integers[0] if inside else integers[0].add_(quant_bias)).float()
        return total.mul_(deq_scale).to(dtype)

    return Bound(product, packed_bytes)


def _sizes(weight: Tensor, limit: int) -> list[int]:
    """Widths of slices of K in each of which no row's magnitudes sum to more than `limit`, 2^13 or more."""
    sizes, held = [0], torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device)
    for block in weight.split(BLOCK, dim=1):
        sums = block.to(torch.int16).abs_().sum(dim=1, dtype=torch.int32)
        held = held + sums
        if sizes[-1] and int(held.max()) > limit:
            sizes.append(0)
            held = sums
        sizes[-1] += block.shape[1]
    return sizes


def _unsigned(xq: Tensor) -> Tensor:
    return xq if xq.dtype == torch.uint8 else xq.view(torch.uint8) ^ 128


def _qlinear(
    x: Tensor, packed: Tensor, scales: Tensor, zero_points: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """(x - 128) @ weight^T * scales + bias, x uint8."""
    op = torch.ops.onednn.qlinear_pointwise.default
    return op(x, 1.0, 128, packed, scales, zero_points, bias, 1.0, 0, dtype, "none", [], "")
