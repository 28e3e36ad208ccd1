"""Which kernel computes linears of static int8. Two groups, told apart by computing and never by a processor's flags:

    fused     oneDNN with bias and scale in it, on a CPU where that is exact (VNNI or AMX)
    common    everywhere else: kernels that give the same bytes, of which the fastest for a layer's shape is taken

Time decides only within the group whose bytes are the same, so that no result depends on it. `products` has the
kernels, `quantizer` what makes their inputs.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from runner.quant.kernels.products import COMMON, FUSED, ONEDNN, Bound
from runner.quant.kernels.quantizer import input_quantizer

log = logging.getLogger(__name__)

# What is timed of a layer: so many rows and outputs tell who is faster, and take a few milliseconds of the largest.
ROWS, OUTPUTS, PRODUCTS, ROUNDS = 256, 512, 2**27, 3
HOPELESS = 8  # times slower than the fastest on a few rows: not tried on a layer


@dataclass(frozen=True)
class Choice:
    """Who computes the linears of one shape; `rows` is a power of two, the next from theirs. `seconds` is empty where
    there was nothing to choose from."""

    device: str
    rows: int
    k: int
    n: int
    dtype: str
    kernel: str
    seconds: dict[str, float]


_choices: dict[tuple[str, int, int, int, torch.dtype], Choice] = {}


def choices() -> list[dict[str, Any]]:
    """What this process has chosen, shape by shape, with the seconds that each candidate took on what was timed."""
    return [asdict(choice) for choice in _choices.values()]


def forget() -> None:
    """Probe and choose anew from here on."""
    _choices.clear()
    candidates.cache_clear()


def bind(
    weight: Tensor, quant_bias: Tensor, deq_scale: Tensor, input_scale: Tensor, offset: int, x: Tensor
) -> tuple[Callable[[Tensor], Tensor], int]:
    """The whole layer, float [..., K] -> [..., N], by the kernel for inputs like `x`, and the bytes of its layout.

    It computes inputs of any other shape as well, and the same.
    """
    name = choose(weight, quant_bias, deq_scale, x.numel() // x.shape[-1], x.dtype)
    quantize = input_quantizer(input_scale, offset, torch.uint8 if name in ONEDNN else torch.int8)
    product, packed_bytes = (FUSED | COMMON)[name](weight, quant_bias, deq_scale)
    return lambda x: product(quantize(x), x.dtype), packed_bytes


def choose(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor, rows: int, dtype: torch.dtype) -> str:
    """The name of the kernel for a layer and so many rows. Found once a process and shape."""
    (n, k), device = weight.shape, weight.device.type
    key = (device, 1 << (rows - 1).bit_length(), k, n, dtype)
    if key not in _choices:
        names, seconds = candidates(device), dict[str, float]()
        if len(names) > 1:
            seconds = _timed(names, weight, quant_bias, deq_scale, rows, dtype)
        kernel = min(seconds, key=seconds.__getitem__, default=names[0])
        told = ", ".join(f"{name} {1e3 * took:.2f} ms" for name, took in seconds.items())
        kind = str(dtype).removeprefix("torch.")
        log.info("W8A8 linears %d x %d -> %d in %s on %s: %s%s", *key[1:4], kind, device, kernel, told and f" ({told})")
        _choices[key] = Choice(*key[:4], kind, kernel, seconds)
    return _choices[key].kernel


@functools.cache
def candidates(device: str) -> tuple[str, ...]:
    """The kernels to choose from on this kind of device: the fused one, or those of the common group that are exact
    and not hopeless. RuntimeError where there is none."""
    if fused := [name for name in FUSED if exact(name, device)]:
        return tuple(fused)
    names = tuple(name for name in COMMON if exact(name, device))
    if not names:
        raise RuntimeError(f"no kernel multiplies 8-bit integers exactly on {device}: its float32 products are rounded")
    weight, ones = _levels(128, 256, device), torch.ones(128, device=device)
    seconds = _timed(names, weight, ones.int(), ones, 16, torch.float32)
    return tuple(name for name, took in seconds.items() if took <= HOPELESS * min(seconds.values()))


def exact(name: str, device: str) -> bool:
    """Whether a kernel runs on a device and gets the largest sums right.

    CPUs without VNNI or AMX add pairs of products in saturating 16 bits: the probe's 255 * 127 would show it.
    """
    if name in ONEDNN and (device != "cpu" or not torch.backends.mkldnn.is_available()):
        return False
    m, k, n = 32, 128, 32
    sign = torch.ones(n, dtype=torch.int32)
    sign[::2] = -1
    x = torch.full((m, k), 127, dtype=torch.int8)
    x[::3] = -128
    weight = (127 * sign).to(torch.int8)[:, None].expand(n, k).contiguous()
    expected = (x[:, :1].int() * 127 * k) * sign + 5 * sign
    try:
        bound = (FUSED | COMMON)[name](*(t.to(device) for t in (weight, 5 * sign, torch.full((n,), 0.25))))
        got = bound.product(x.to(device), torch.float32)
        return torch.equal(got.cpu(), expected * 0.25) and (name != "carries" or _takes_128_out_as_an_integer())
    except (RuntimeError, NotImplementedError, AttributeError):  # no such operator, or not for this device
        return False


def _takes_128_out_as_an_integer() -> bool:
    """Whether oneDNN takes the zero point of its inputs out of the integer sum, and not, as with AMX, of its float32.

    The sum is odd and beyond 2^24 with the zero point in it, where float32 has even numbers alone, and below without.
    """
    x = torch.full((32, 1024), 127, dtype=torch.int8)
    x[:, 0] = 126
    weight, ones = torch.full((32, 1024), 127, dtype=torch.int8), torch.ones(32)
    total = COMMON["carries"](weight, 0 * ones.int(), ones).product(x, torch.float32)
    return bool((total == 127 * (127 * 1023 + 126)).all())


def _timed(
    names: tuple[str, ...], weight: Tensor, quant_bias: Tensor, deq_scale: Tensor, rows: int, dtype: torch.dtype
) -> dict[str, float]:
    """The least seconds that each kernel takes for some rows and outputs of a layer, all in turn."""
    n, k = min(OUTPUTS, weight.shape[0]), weight.shape[1]
    x = _levels(min(rows, ROWS, max(32, PRODUCTS // (n * k))), k, weight.device.type)
    inputs = {name: x.view(torch.uint8) ^ 128 if name in ONEDNN else x for name in names}
    bound: dict[str, Bound] = {
        name: (FUSED | COMMON)[name](weight[:n].contiguous(), quant_bias[:n], deq_scale[:n]) for name in names
    }
    seconds = dict.fromkeys(names, float("inf"))
    for turn in range(ROUNDS + 1):
        for name in names:
            start = time.perf_counter()
            bound[name].product(inputs[name], dtype)[..., :1].cpu()  # has a device finish
            if turn:  # the first warms up
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _levels(rows: int, columns: int, device: str) -> Tensor:
    """Some int8 [rows, columns], all levels in turn: a choice of kernels draws no random numbers."""
    return (torch.arange(rows * columns, device=device) * 157 % 256 - 128).to(torch.int8).view(rows, columns)


__all__ = ["Choice", "bind", "candidates", "choices", "choose", "exact", "forget", "input_quantizer"]
