"""Which dtype a machine computes in. Imports no torch, so that the desk can tell.

`model.dtype` is what weights and exports are. What they are multiplied in is the hardware's affair: without hardware
that multiplies bfloat16, torch's bfloat16 linear has 0.06 to 0.16 of float32's speed on a CPU, and its conv3d 0.002 to
0.03 (torch 2.13, AVX2).
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.hardware.processor import bf16_feature, processor_class

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}  # an element
HOLDS = {"bf16": {"bf16"}, "fp16": {"fp16"}, "fp32": {"bf16", "fp16", "fp32"}}  # without rounding: by dtype, which


@dataclass(frozen=True)
class Compute:
    """The dtype that a machine computes in, why, and what is said where it takes more than twice the time."""

    dtype: str
    why: str
    warning: str | None = None


def decide(asked: str, device: str, dtype: str) -> Compute:
    """What `hardware.compute=asked` means for weights of `dtype` on this machine's `device`.

    auto is what the device multiplies fastest of what holds the weights: on a CPU bf16 where the processor has
    instructions for it, else fp32; on the others the weights' own dtype. An explicit value is obeyed.
    """
    best, why = _fastest(device, dtype)
    if asked in ("auto", best):
        return Compute(best, why)
    where = f"this {processor_class()} processor" if device == "cpu" else f"a {device} device"
    slow = _is_slow(asked, device)
    warning = f"hardware.compute={asked} takes more than twice the time of {best} on {where}" if slow else None
    return Compute(asked, "as asked for", warning)


def holds(compute: str, dtype: str) -> bool:
    """Whether numbers of `dtype` are the same in `compute`."""
    return dtype in HOLDS[compute]


def _fastest(device: str, dtype: str) -> tuple[str, str]:
    if device != "cpu":
        return dtype, f"as its weights are, on {device}"
    if dtype == "fp32":
        return dtype, "as its weights are"
    feature = bf16_feature()
    if dtype == "bf16" and feature:
        return dtype, f"as its weights are; this processor multiplies it ({feature})"
    lacks = "fp16 is slow on a CPU" if dtype == "fp16" else f"this processor ({processor_class()}) multiplies no bf16"
    return "fp32", f"{lacks}; its weights are {dtype}"


def _is_slow(dtype: str, device: str) -> bool:
    """Whether matrices in `dtype` take more than twice the time of the fastest."""
    if device != "cpu":
        return dtype == "fp32"
    if dtype == "fp32":
        return processor_class() == "amx"
    return dtype == "fp16" or bf16_feature() is None
