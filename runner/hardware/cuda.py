"""NVIDIA GPUs through torch.cuda."""

from __future__ import annotations

import time

import torch

DEVICE = "cuda"


def available() -> str | None:
    return None if torch.cuda.is_available() else "this torch sees no CUDA device"


def choose(index: int) -> None:
    torch.cuda.set_device(index % torch.cuda.device_count())


def synchronize() -> None:
    torch.cuda.synchronize()


def clock() -> float:
    """Seconds on the wall: the device's time is nobody else's."""
    torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak_memory() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Peak of tensor memory since the last reset, bytes."""
    return torch.cuda.max_memory_allocated()


def describe() -> dict[str, str | int]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"device": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda or ""}
