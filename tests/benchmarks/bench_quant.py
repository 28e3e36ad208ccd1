"""W8A8 against float linears, kernel by kernel, and a step of the shipped model against its float step.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_quant.py [--repeats 15] [--dtype fp32|bf16] [linears] [step]

Arms are interleaved and timed by the CPU time of this process, since wall time on a shared machine says little. Every
line says the processor's class. An int8 arm is the whole layer, input to output; beside it stands whether it computed
the integer formula, so that no fast wrong answer is timed; * is what the layer takes by itself. The dtype is what the
float arm of a user here would compute in: bf16 where the processor multiplies it, else float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from processor_line import say_processor
from torch import Tensor, nn
from torch.nn import functional as F

from runner.embedded.training.scores import SHIPPED
from runner.hardware.processor import bf16_feature, processor_class
from runner.model import load_transformer, skeleton
from runner.quant.kernels import static_int8 as kernels
from runner.quant.kernels.products import COMMON, FUSED, ONEDNN
from runner.quant.layers import select
from runner.quant.observers import Range
from runner.quant.swap import apply, quantize
from runner.quant.w8a8 import W8A8Linear, quantize_linear

# M, K, N: the shipped tiny model, where calls cost more than arithmetic; then widths of released models.
SIZES = [
    (160, 144, 144),
    (160, 144, 576),
    (160, 576, 144),
    (1024, 1152, 1152),
    (1024, 1152, 4608),
    (1024, 2304, 2304),
    (1024, 2304, 9216),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Arms = Mapping[str, Callable[[], object]]


def interleaved(arms: Arms, repeats: int, inner: int) -> dict[str, list[float]]:
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


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (quartiles)."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def show(what: str, seconds: Mapping[str, Sequence[float]], notes: Mapping[str, str]) -> None:
    """A line for each arm: its time, and its speed by that of the float arms in the same rounds."""
    floats = [name for name in DTYPES if name in seconds]
    for name, values in seconds.items():
        ratios = (spread([a / b for a, b in zip(seconds[one], values, strict=True)]) for one in floats)
        speeds = "   ".join(f"{one} x {ratio:<18}" for one, ratio in zip(floats, ratios, strict=True))
        microseconds = spread([1e6 * each for each in values], 0)
        print(f"{processor_class():<11} {what:<20} {name:<12} {microseconds:>26} us   {speeds}{notes.get(name, '')}")
    sys.stdout.flush()


def follows_the_formula(layer: W8A8Linear, x: Tensor, y: Tensor) -> bool:
    """`y`, of float32 inputs, is the integer formula within two float32 roundings."""
    scale = layer.dequantization_scale().double()
    xq = torch.round(x.float() / layer.input_scale.float()) + layer.input_offset.float()
    total = xq.clamp(-128, 127).double() @ layer.weight.double().T
    bound = 2.01 * 2.0**-24 * (total.abs() + layer.quant_bias.abs()) * scale
    return bool(((y.double() - (total + layer.quant_bias) * scale).abs() <= bound).all())


def linears(dtype: torch.dtype, repeats: int) -> bool:
    right = True
    for m, k, n in SIZES:
        torch.manual_seed(0)
        linear = nn.Linear(k, n)
        nn.init.normal_(linear.weight, std=k**-0.5)
        x, own = torch.randn(m, k), linear.to(torch.bfloat16)
        layer = W8A8Linear(**quantize_linear("linear", own, Range(float(x.min()), float(x.max()))))
        scale, offset = layer.input_scale.float(), int(layer.input_offset)
        taken = kernels.choose(layer.weight, layer.quant_bias, layer.dequantization_scale(), m, dtype)
        arms: dict[str, Callable[[], object]] = {}
        for name, kind in DTYPES.items():
            operands = [t.to(kind) for t in (x, own.weight, own.bias)]
            arms[name] = lambda operands=operands: F.linear(*operands)  # type: ignore[misc]
        notes, outputs, given = {}, {}, x.to(dtype)
        for name, kernel in (FUSED | COMMON).items():
            if not kernels.exact(name, "cpu") or (name == "int_mm" and hopeless(name)):
                continue
            quantized = kernels.input_quantizer(scale, offset, torch.uint8 if name in ONEDNN else torch.int8)
            product = kernel(layer.weight, layer.quant_bias, layer.dequantization_scale()).product
            arms[name] = lambda q=quantized, p=product, x=given: p(q(x), x.dtype)  # type: ignore[misc]
            outputs[name] = product(quantized(x), torch.float32)
            same = follows_the_formula(layer, x, outputs[name])
            if name in COMMON:  # and the bytes of the first of them
                same &= torch.equal(outputs[name], next(y for other, y in outputs.items() if other in COMMON))
            notes[name] = ("right" if same else "WRONG") + (" *" if name == taken else "")
            right &= same
        show(f"{m}, {k} -> {n}", interleaved(arms, repeats, max(1, 2**26 // (m * k * n))), notes)
    return right


def hopeless(name: str) -> bool:
    """Whether a kernel of the common group is left out where another one may be taken (a reference loop)."""
    return "onednn" not in kernels.candidates("cpu") and name not in kernels.candidates("cpu")


def step(dtype: torch.dtype, repeats: int) -> bool:
    """One forward of the shipped transformer on a guided pair, its linears quantized with their ranges on it."""
    kind = next(name for name, one in DTYPES.items() if one == dtype)
    groups = Path(__file__).parents[2] / "conf" / "model" / "osp12.yaml"
    excluded = yaml.safe_load(groups.read_text())["model"]["keep_float"]
    section = {"name": "osp12", "checkpoint": SHIPPED["osp12"], "dtype": kind}
    transformer = load_transformer(section, "cpu")
    torch.manual_seed(0)
    call = {
        "hidden_states": torch.randn(2, 4, 5, 8, 8, dtype=dtype),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 1, 16, transformer.config.caption_channels, dtype=dtype),
        "encoder_attention_mask": (torch.arange(16) < 7).long().expand(2, 1, 16),
    }
    layers = select(transformer, ["*"], excluded).quantized
    export = quantize(transformer, "w8a8", dict.fromkeys(layers, "w8a8"), ranges(transformer, layers, call))
    quantized = apply(skeleton(section), *export)
    arms: dict[str, Callable[[], Tensor]] = {
        kind: lambda: transformer(**call, return_dict=False)[0],
        "w8a8": lambda: quantized(**call, return_dict=False)[0],
    }
    wanted, got = (arm().float() for arm in arms.values())
    error = float((got - wanted).norm() / wanted.norm())
    show("a step of osp12", interleaved(arms, repeats, 4), {"w8a8": f"relative error {error:.4f}"})
    print({choice["kernel"] for choice in kernels.choices()})
    return error < 0.1


def ranges(model: nn.Module, layers: Sequence[str], call: Mapping[str, Tensor]) -> dict[str, Range]:
    """The extremes of these layers' inputs in one call."""
    seen: dict[str, Range] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            low, high = map(float, args[0].aminmax())
            before = seen.get(name, Range(low, high))
            seen[name] = Range(min(low, before.minimum), max(high, before.maximum))

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers]
    model(**call)
    for hook in hooks:
        hook.remove()
    return seen


PARTS = {"linears": linears, "step": step}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; both by default")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if bf16_feature() else "fp32")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    say_processor()
    found = ", ".join(kernels.candidates("cpu"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.dtype}, kernels: {found}")
    with torch.inference_mode():
        right = [PARTS[name](DTYPES[options.dtype], options.repeats) for name in options.parts or PARTS]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
