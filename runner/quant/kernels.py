"""How the integer product of a linear is computed: the only place that knows kernels, and where one is chosen.

Every kernel is a function bind(weight, quant_bias, deq_scale) -> matmul, and

    matmul(xq int8 [M, K], dtype) = ((xq @ weight^T + quant_bias) * deq_scale) in dtype [M, N]

with exact integers and float32 rounding only: at most two roundings of 2^-24, each relative to the larger of the two
terms. weight int8 [N, K], quant_bias int32 [N], deq_scale float32 [N]. `matmul` may write into xq.
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


def quantize_input(x: Tensor, scale: Tensor, offset: int) -> Tensor:
    """clamp(round_half_even(x / scale) + offset, -128, 127) as int8, contiguous, of x's shape. scale float32 [1].

    Exactly the division and the two roundings of the formula. torch.quantize_per_tensor is deprecated, multiplies by a
    reciprocal and adds the offset before it rounds, which moves some values by a level. float -> int8 is vectorized,
    float -> uint8 is not.
    """
    if x.numel() <= CHUNK or x.device.type != "cpu":
        q = torch.div(x, scale).round_().add_(offset).clamp_(-128, 127)
        return q.to(torch.int8, memory_format=torch.contiguous_format)
    out = torch.empty(x.shape, dtype=torch.int8)
    for source, target in zip(x.reshape(-1).split(CHUNK), out.view(-1).split(CHUNK), strict=True):
        target.copy_(torch.div(source, scale).round_().add_(offset).clamp_(-128, 127))
    return out


def onednn(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Matmul:
    """oneDNN's quantized linear on a CPU: int8 instructions, bias and scales fused.

    Its fast path wants unsigned inputs (signed ones fall to a reference kernel some 3000 times slower): q + 128, with a
    zero point of 128 that oneDNN takes out of the integer sum. Operators as registered since torch 2.2.
    """
    op = torch.ops.onednn.qlinear_pointwise.default
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    bias = deq_scale * quant_bias
    zero_points = torch.zeros_like(quant_bias)

    def matmul(xq: Tensor, dtype: torch.dtype) -> Tensor:
        x = xq.view(torch.uint8).bitwise_xor_(128)
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
        m = xq.shape[0]
        if k % 8 or m < rows:
            xq = F.pad(xq, (0, -k % 8, 0, max(0, rows - m)))
        return _epilogue(torch._int_mm(xq, transposed)[:m, :n], quant_bias, deq_scale, dtype)

    return matmul


def float_slices(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Matmul:
    """The same integers by float32 arithmetic, for any device: slow, for where there is no integer kernel.

    A sum of 1024 products of at most 2^7 * 2^7 stays within 2^24, so float32 holds every partial sum exactly (TF32 and
    bfloat16 inputs too: they hold eight bits). The slices are added as integers.
    """
    slices = weight.split(1024, dim=1)

    def matmul(xq: Tensor, dtype: torch.dtype) -> Tensor:
        parts = [
            F.linear(x.float(), w.float()).to(torch.int32) for x, w in zip(xq.split(1024, dim=1), slices, strict=True)
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


def bind(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Matmul:
    """The best kernel of the weight's device, with its operands laid out for it."""
    return KERNELS[choose(weight.device.type)](weight, quant_bias, deq_scale)
