"""What the host processor multiplies fast, told from its flags. Imports no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # flags of hardware that multiplies bfloat16; the last is aarch64's
# Each class has what the ones below it have not, and the first that fits names the processor.
CLASSES = {
    "amx": ("amx_tile", "amx_int8", "amx_bf16"),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_vnni": ("avx512_vnni",),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx2_vnni": ("avx_vnni",),
    "avx2": ("avx2",),
}


@cache
def flags() -> frozenset[str]:
    """The features that the kernel lists of the first processor; none where the system does not tell."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    features = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(features, "").split())


def bf16_feature() -> str | None:
    """The flag of the hardware that multiplies bfloat16; None where there is none, or where it is not known."""
    return next((flag for flag in BF16 if flag in flags()), None)


def processor_class() -> str:
    """The class that figures are quoted with: amx, avx512_bf16, avx512_vnni, avx512, avx2_vnni, avx2 or other."""
    return next((name for name, needed in CLASSES.items() if flags().issuperset(needed)), "other")
