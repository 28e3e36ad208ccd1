"""The host processor. Memory is the resident set of the whole process, as the kernel counts it."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from pathlib import Path

import torch

from runner.hardware.processor import processor_class

DEVICE = "cpu"


def available() -> str | None:
    return None


def choose(index: int) -> None:
    """There is one."""


def synchronize() -> None:
    """CPU work is synchronous."""


def clock() -> float:
    """Processor time of this process: what others do on a shared machine is not in it."""
    return time.process_time()


def reset_peak_memory() -> None:
    """Reset the kernel's high-water mark, after the C allocator has given back what it holds unused."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the mark then covers the whole process
        pass


def peak_memory() -> int:
    """Peak resident set since the last reset, bytes (0 where the system does not tell)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def describe() -> dict[str, str | int]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    threads = torch.get_num_threads()
    return {"device": model, "class": processor_class(), "cores": os.cpu_count() or 1, "threads": threads}
