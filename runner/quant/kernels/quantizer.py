"""How the inputs of a quantized linear become integers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Elements quantized at a time: the float32 intermediate then stays in the cache. Whole, it costs six times as much for
# [4096, 2304] (page faults).
CHUNK = 2**18
# float32 from 2^23 to 2^24 has steps of 1, so adding this rounds to an integer, ties to even, that the low bits hold.
ROUNDER = 1.5 * 2**23


def input_quantizer(scale: Tensor, offset: int, dtype: torch.dtype = torch.int8) -> Callable[[Tensor], Tensor]:
    """x of any shape -> q = clamp(round_half_even(x / scale) + offset, -128, 127) as int8, or q + 128 as uint8.

    Contiguous; scale float32 [1]. Exactly the division and the two roundings of the formula.
    torch.quantize_per_tensor is deprecated, multiplies by a reciprocal and adds the offset before it rounds, which
    moves some values by a level.
    """
    low = torch.iinfo(dtype).min
    shift = offset + low + 128
    smallest, largest = low - shift, low + 255 - shift
    odd = shift % 2  # an odd number in the sum would turn ties to odd
    rounder, on_cpu = ROUNDER + shift - odd, scale.device.type == "cpu"

    def levels(x: Tensor) -> Tensor:
        return torch.div(x, scale).clamp_(smallest, largest).add_(rounder).view(torch.int32)

    def quantize(x: Tensor) -> Tensor:
        x = x.contiguous()
        if not on_cpu or x.dtype == torch.float64:
            return torch.div(x, scale).round_().add_(shift).clamp_(low, low + 255).to(dtype)
        # A small input costs what its passes cost: one sum rounds, shifts, and leaves the level in the lowest byte.
        if x.numel() <= CHUNK:
            out = levels(x).to(dtype)
        else:
            out = torch.empty(x.shape, dtype=dtype)
            for source, target in zip(x.view(-1).split(CHUNK), out.view(-1).split(CHUNK), strict=True):
                target.copy_(levels(source))
        return out.add_(1) if odd else out

    return quantize
