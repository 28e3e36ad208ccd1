"""What quantized weights take in memory while they compute. Imports no torch."""

from __future__ import annotations

from runner.hardware import processor

# Bytes that a kernel holds for each weight, beside its byte of int8: oneDNN's layout of it, or at most a float32.
FUSED, COMMON = 1, 4
INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm")  # flags of hardware with which oneDNN's own kernel is exact


def packed_bytes() -> int:
    """Bytes of a kernel's own layout for each quantized weight on this processor, the upper bound if that is unknown.

    An estimate: what is computed with is decided by computing (runner.quant.kernels).
    """
    return FUSED if processor.flags().intersection(INT8) else COMMON
