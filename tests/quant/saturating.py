"""What a process whose oneDNN is held to AVX2 chooses and computes, for another one: python saturating.py FILE."""

from __future__ import annotations

import sys

import torch
from quant.integer_products import RANGE, float_linear, operands, raw_onednn, right

from runner.quant.kernels import products
from runner.quant.kernels import static_int8 as kernels
from runner.quant.kernels.products import COMMON, FUSED
from runner.quant.w8a8 import W8A8Linear, quantize_linear

SHAPES = [(1, 1, 1), (160, 144, 576), (33, 1100, 65), (7, 4609, 8), (1, 576, 1)]
MISALIGNED = (1, 167, 7)


def main() -> None:
    exact = {name: kernels.exact(name, "cpu") for name in FUSED | COMMON}
    made = []
    for shape in SHAPES:
        xq, *layer = operands(*shape, seed=3, extreme=shape[0] % 2 == 1)
        for name in filter(exact.get, COMMON):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                made.append((name, shape, dtype, COMMON[name](*layer).product(xq, dtype)))
    products.ALIGNED = 2  # oneDNN then splits a pair of these columns
    xq, *layer = operands(*MISALIGNED, seed=2)
    misaligned = COMMON["carries"](*layer)
    linear, x = float_linear()
    y = W8A8Linear(**quantize_linear("layer", linear, RANGE))(x)
    told = {
        "plain onednn is right": right(raw_onednn),
        "exact": exact,
        "candidates": kernels.candidates("cpu"),
        "products": made,
        "misaligned": (misaligned.product(xq, torch.float32), misaligned.packed_bytes),
        "layer": y,
        "kernel": kernels.choices()[0]["kernel"],
    }
    torch.save(told, sys.argv[1])


if __name__ == "__main__":
    main()
