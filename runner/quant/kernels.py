"""How the integer product of a linear is computed: the only place that knows kernels, and where one is chosen.

Every kernel is a function bind(weight, quant_bias, deq_scale) -> matmul, and

    matmul(xq int8 [..., K], dtype) = ((xq @ weight^T + quant_bias) * deq_scale) in dtype [..., N]

with exact integers and float32 rounding only: at most two roundings of 2^-24, each relative to the larger of the two
terms. weight int8 [N, K], quant_bias int32 [N], deq_scale float32 [N].
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Matmul = Callable[[Tensor, torch.dtype], Tensor]
Kernel = Callable[[Tensor, Tensor, Tensor], Matmul]

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


def onednn(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Matmul:
    """oneDNN's quantized linear on a CPU: int8 instructions, bias and scales fused.

    Its fast path wants unsigned inputs (signed ones fall to a reference kernel some 3000 times slower): q + 128, with a
    zero point of 128 that oneDNN takes out of the integer sum. So `matmul` takes inputs that are uint8 already, too.
    Operators as registered since torch 2.2.
    """
    op = torch.ops.onednn.qlinear_pointwise.default
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    bias = deq_scale * quant_bias
    zero_points = torch.zeros_like(quant_bias)

    def matmul(xq: Tensor, dtype: torch.dtype) -> Tensor:
        x = xq if xq.dtype == torch.uint8 else xq.view(torch.uint8) ^ 128
        native = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        y = op(x, 1.0, 128, packed, deq_scale, zero_points, bias, 1.0, 0, native, "none", [], "")
        return y if dtype == native else y.to(dtype)

    return matmul


def int_mm(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Matmul:
    """torch._int_mm: int8 x int8 -> int32, then one pass for bias and scale.

    CUDA wants more than 16 rows, and K and N that are multiples of 8; the CPU's is wrong for K = 1 (torch 2.13). So odd
    sizes are padded with zeros, which add nothing to the sums.
    """
    (n, k), rows = weight.shape, 32 if weight.is_cuda else 1
    transposed = F.pad(weight, (0, -k % 8, 0, -n % 8)).t()

    def matmul(xq: Tensor, dtype: torch.dtype) -> Tensor:
        x = xq.reshape(-1, k)
        m = x.shape[0]
        if k % 8 or m < rows:
            x = F.pad(x, (0, -k % 8, 0, max(0, rows - m)))
        y = _epilogue(torch._int_mm(x, transposed)[:m, :n], quant_bias, deq_scale, dtype)
        return y.reshape(*xq.shape[:-1], n)

    return matmul


def float_slices(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Matmul:
    """The same integers by float32 arithmetic, for any device: slow, for where there is no integer kernel.

    A sum of 1024 products of at most 2^7 * 2^7 stays within 2^24, so float32 holds every partial sum exactly (TF32 and
    bfloat16 inputs too: they hold eight bits). The slices are added as integers.
    """
    slices = weight.split(1024, dim=1)

    def matmul(xq: Tensor, dtype: torch.dtype) -> Tensor:
        parts = [
            F.linear(x.float(), w.float()).to(torch.int32) for x, w in zip(xq.split(1024, dim=-1), slices, strict=True)
        ]
        return _epilogue(functools.reduce(Tensor.add_, parts), quant_bias, deq_scale, dtype)

    return matmul


def _epilogue(total: Tensor, quant_bias: Tensor, deq_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return ((total + quant_bias) * deq_scale).to(dtype)


KERNELS: dict[str, Kernel] = {"onednn": onednn, "int_mm": int_mm, "float_slices": float_slices}  # best first


@functools.cache
def choose(device_type: str) -> str:
    """The first kernel that is exact on this kind of device: a kernel that fails its probe is not used."""
    return next(name for name in KERNELS if exact(name, device_type))


def exact(name: str, device_type: str) -> bool:
    """Whether a kernel runs on a device and gets the largest sums right.

    CPUs without VNNI or AMX add pairs of products in saturating 16 bits: the probe's 255 * 127 would show it.
    """
    if name == "onednn" and (device_type != "cpu" or not torch.backends.mkldnn.is_available()):
        return False
    m, k, n = 32, 128, 32
    sign = torch.ones(n, dtype=torch.int32)
    sign[::2] = -1
    x = torch.full((m, k), 127, dtype=torch.int8)
    x[::3] = -128
    weight = (127 * sign).to(torch.int8)[:, None].expand(n, k).contiguous()
    expected = (x[:, :1].int() * 127 * k) * sign + 5 * sign
    try:
        bound = KERNELS[name](*(t.to(device_type) for t in (weight, 5 * sign, torch.full((n,), 0.25))))
        got = bound(x.to(device_type), torch.float32)
    except (RuntimeError, NotImplementedError, AttributeError):  # no such operator, or not for this device
        return False
    return torch.equal(got.cpu(), expected * 0.25)


def bind(
    weight: Tensor, quant_bias: Tensor, deq_scale: Tensor, input_scale: Tensor, offset: int
) -> Callable[[Tensor], Tensor]:
    """The whole layer, float [..., K] -> [..., N], by the best kernel of the weight's device, laid out for it."""
    name = choose(weight.device.type)
    quantize = input_quantizer(input_scale, offset, torch.uint8 if name == "onednn" else torch.int8)
    matmul = KERNELS[name](weight, quant_bias, deq_scale)
    return lambda x: matmul(quantize(x), x.dtype)
