"""The machine as a measurement knows it: processor, cores, memory, accelerators. Without torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def describe() -> dict[str, object]:
    """What this machine is. Memory in bytes (0 where the system does not tell); cores that this process may use."""
    return {
        "processor": _first("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": int(_first("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0) * 1024,
        "accelerators": [
            _first(path, r"Model:\s*(.+)") or "unknown"
            for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        ],
        "system": f"{platform.system()} {platform.machine()}",
    }


def identity() -> str:
    """A name for machines like this one: two that time alike have it in common."""
    facts = describe() | {"memory": round(int(str(describe()["memory"])) / 2**30)}  # kernels differ by a few pages
    processor = re.sub(r"[^a-z0-9]+", "-", str(facts["processor"]).lower()).strip("-")[:32]
    return f"{processor}-{hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:8]}"


def _first(path: str | Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1].strip() if found else None
