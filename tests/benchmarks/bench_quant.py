"""W8A8 against float linears: OMP_NUM_THREADS=1 python tests/benchmarks/bench_quant.py [--repeats 15]

Arms are interleaved and timed by the CPU time of this process, since wall time on a shared machine says little. Each
row also says whether the int8 arm computed the integer formula exactly, so that no fast wrong answer is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from runner.quant import kernels
from runner.quant.linear import W8A8Linear
from runner.quant.observers import Range
from runner.quant.w8a8 import quantize_linear

# M, K, N: the shipped tiny model, where calls cost more than arithmetic; then sizes of released models.
SIZES = [
    (160, 144, 144),
    (160, 144, 576),
    (160, 576, 144),
    (1024, 1152, 1152),
    (1024, 2304, 2304),
    (1024, 2304, 9216),
    (4096, 2304, 2304),
]


def interleaved(arms: dict[str, Callable[[], Tensor]], repeats: int, inner: int) -> dict[str, list[float]]:
    """Seconds of CPU time a call, `repeats` for each arm in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for call in arms.values():
        call()
    for _ in range(repeats):
        for name, call in arms.items():
            start = time.process_time()
            for _ in range(inner):
                call()
            seconds[name].append((time.process_time() - start) / inner)
    return seconds


def exact(layer: W8A8Linear, x: Tensor) -> bool:
    """The layer's float32 output is the integer formula within two float32 roundings."""
    scale = layer.dequantization_scale().double()
    xq = torch.round(x.float() / layer.input_scale.float()) + layer.input_offset.float()
    total = xq.clamp(-128, 127).double() @ layer.weight.double().T
    bound = 2.01 * 2.0**-24 * (total.abs() + layer.quant_bias.abs()) * scale
    return bool(((layer(x.float()).double() - (total + layer.quant_bias) * scale).abs() <= bound).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), kernel {kernels.choose('cpu')}")
    print("   M    K    N |  fp32 us   bf16 us   w8a8 us (quartiles) of it input | x fp32  x bf16 (quartiles) | exact")
    for m, k, n in SIZES:
        torch.manual_seed(0)
        linear = nn.Linear(k, n).bfloat16()
        x = torch.randn(m, k).bfloat16()
        x32, w32, b32 = x.float(), linear.weight.float(), linear.bias.float()
        layer = W8A8Linear(**quantize_linear("linear", linear, Range(float(x.min()), float(x.max()))))
        quantize = kernels.input_quantizer(layer.input_scale.float(), int(layer.input_offset), torch.uint8)
        with torch.inference_mode():
            arms: dict[str, Callable[[], Tensor]] = {
                "fp32": lambda x=x32, w=w32, b=b32: nn.functional.linear(x, w, b),  # type: ignore[misc]
                "bf16": lambda f=linear, x=x: f(x),  # type: ignore[misc]
                "w8a8": lambda f=layer, x=x: f(x),  # type: ignore[misc]
                "input": lambda f=quantize, x=x: f(x),  # type: ignore[misc]
            }
            times = interleaved(arms, repeats, inner=max(1, 2**25 // (m * k * n)))
            same = exact(layer, x)
        fp32, bf16, w8a8, rest = (statistics.median(times[arm]) * 1e6 for arm in ("fp32", "bf16", "w8a8", "input"))
        low, _, high = statistics.quantiles(times["w8a8"], n=4)
        ratios = [a / b for a, b in zip(times["bf16"], times["w8a8"], strict=True)]
        worst, _, best = statistics.quantiles(ratios, n=4)
        times_text = f"{fp32:8.0f}  {bf16:8.0f}  {w8a8:8.0f} ({low * 1e6:.0f}-{high * 1e6:.0f}) {rest:7.0f}"
        ratio_text = f"{fp32 / w8a8:5.2f}   {statistics.median(ratios):5.2f} ({worst:.2f}-{best:.2f})"
        print(f"{m:5d}{k:5d}{n:5d} | {times_text} | {ratio_text} | {same}", flush=True)


if __name__ == "__main__":
    main()
