"""Stand-ins for torch_npu and torch_gcu on a CPU: the names and parameters that their vendors publish, and no other.

torch_npu: signatures of torch_npu 2.13's npu/__init__.py, npu/memory.py, npu/utils.py, which a test compares with the
wheel where there is one. torch_gcu has no public wheel: what Enflame's public ports call. Whatever is not written here
raises AttributeError, and a keyword that is not, TypeError. What computes behind the names is hardware.card.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

calls: list[str] = []  # what was called, in order


def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    return call


def npu(count: int = 1) -> ModuleType:
    """torch_npu with so many devices."""
    properties = SimpleNamespace(name="Ascend910B", total_memory=64 << 30)

    def is_available():
        return count > 0

    def device_count():
        return count

    def max_memory_allocated(device=None):
        return 12345

    def get_device_properties(device_name=None):
        return properties

    def set_device(device):
        assert device in range(count)

    def synchronize(device=None): ...
    def empty_cache(): ...
    def reset_peak_memory_stats(device=None): ...

    asked = (is_available, device_count, max_memory_allocated, get_device_properties)
    told = (set_device, synchronize, empty_cache, reset_peak_memory_stats)
    # Operators that transformers and diffusers import where they find an NPU: none of them runs here.
    operators = {name: _unused(name) for name in ("npu_fusion_attention", "npu_rms_norm", "npu_rotary_mul")}
    return _module("npu", (*asked, *told), __version__="2.13.0", **operators)


def _unused(name: str) -> Callable[..., Any]:
    def operator(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"{name} was called")

    return operator


def gcu(count: int = 1) -> ModuleType:
    """torch_gcu with so many devices."""

    def is_available():
        return count > 0

    def synchronize(device=None): ...
    def manual_seed(seed): ...
    def manual_seed_all(seed): ...
    def empty_cache(): ...

    return _module("gcu", (is_available, synchronize, manual_seed, manual_seed_all, empty_cache))


def _module(device: str, functions: Any, **contents: Any) -> ModuleType:
    inner = ModuleType(f"torch_{device}.{device}")
    for function in functions:
        setattr(inner, function.__name__, noted(function.__name__, function))
    made = ModuleType(f"torch_{device}")
    made.__dict__.update(contents, **{device: inner}, __spec__=ModuleSpec(made.__name__, None))
    return made


def install(device: str, count: int = 1, put: Callable[..., None] = setattr) -> None:
    """Have `import torch_<device>` find the stand-in, and torch its module, as the real one does. `put` sets them: a
    monkeypatch's setattr takes them back."""
    made = {"npu": npu, "gcu": gcu}[device](count)
    sys.modules[made.__name__] = made
    put(torch, device, getattr(made, device), **({"raising": False} if put is not setattr else {}))
