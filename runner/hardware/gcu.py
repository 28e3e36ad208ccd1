"""Enflame GCUs through torch_gcu (torch 2.3, Python 3.10), imported here alone, and not before hardware=gcu asks.

Of its interface only what public programs use is known: there is nothing in it that tells memory.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from importlib import import_module
from typing import Any

import torch

DEVICE = "gcu"


def available() -> str | None:
    try:
        import_module("torch_gcu")  # makes torch know the device
    except Exception as error:  # a library of its stack may be missing
        return f"torch_gcu cannot be imported ({type(error).__name__}: {error}); it comes with Enflame's TopsRider"
    return None if _gcu().is_available() else "torch_gcu sees no GCU"


def choose(index: int) -> None:
    """Raises RuntimeError for any but the first: nothing is published that chooses one."""
    if index:
        raise RuntimeError("hardware=gcu runs in one process: torch_gcu publishes no way to choose among devices")


def synchronize() -> None:
    _gcu().synchronize()


def clock() -> float:
    """Seconds on the wall: the device's time is nobody else's."""
    synchronize()
    return time.perf_counter()


def reset_peak_memory() -> None:
    """Release what the allocator holds unused."""
    _gcu().empty_cache()


def peak_memory() -> int:
    """0: torch_gcu publishes no count."""
    return 0


def describe() -> dict[str, str | int]:
    """The device by name, and what efsmi, Enflame's tool, says of it."""
    module = import_module("torch_gcu")
    facts: dict[str, str | int] = {"device": "Enflame GCU"}
    if version := getattr(module, "__version__", None):
        facts["driver"] = f"torch_gcu {version}"
    if tool := shutil.which("efsmi"):
        done = subprocess.run([tool], capture_output=True, text=True, timeout=60)
        facts["efsmi"] = done.stdout.strip()
    return facts


def _gcu() -> Any:
    return torch.gcu  # type: ignore[attr-defined]  # torch_gcu puts it there
