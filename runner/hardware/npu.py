"""Ascend NPUs through torch_npu, which is imported here alone, and not before a run asks for hardware=npu."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import torch

DEVICE = "npu"


def available() -> str | None:
    try:
        import_module("torch_npu")  # makes torch know the device
    except Exception as error:  # without CANN its libraries are missing, and it raises what the loader does
        return f"torch_npu cannot be imported ({type(error).__name__}: {error}); it needs Ascend's CANN beside it"
    return None if _npu().is_available() else "torch_npu sees no NPU"


def choose(index: int) -> None:
    _npu().set_device(index % _npu().device_count())


def synchronize() -> None:
    _npu().synchronize()


def clock() -> float:
    """Seconds on the wall: the device's time is nobody else's."""
    synchronize()
    return time.perf_counter()


def reset_peak_memory() -> None:
    _npu().empty_cache()
    _npu().reset_peak_memory_stats()


def peak_memory() -> int:
    """Peak of tensor memory since the last reset, bytes."""
    return int(_npu().max_memory_allocated())


def describe() -> dict[str, str | int]:
    properties = _npu().get_device_properties()
    return {
        "device": properties.name,
        "memory": properties.total_memory,
        "driver": f"torch_npu {import_module('torch_npu').__version__}",
    }


def _npu() -> Any:
    return torch.npu  # type: ignore[attr-defined]  # torch_npu puts it there
