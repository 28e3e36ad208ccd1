"""What computes quantized linears: a file for each arithmetic, which the `bind` of a scheme's linear calls.

    static_int8    int8 weights by channel, int8 inputs with one recorded scale and offset        (W8A8)

Another arithmetic (int8 inputs with a scale for each token, weights in groups, float8) is a file beside it with a
`bind(..., x) -> (compute, bytes of its own layout)`, the candidates for it in tables like those of `products`, and
`choices` of its own, listed here. `products` multiplies int8 exactly, `quantizer` makes static int8 inputs.
"""

from __future__ import annotations

from typing import Any

from runner.quant.kernels import static_int8

ARITHMETIC = (static_int8,)


def choices() -> list[dict[str, Any]]:
    """What this process has chosen for linears of any arithmetic, shape by shape, with the seconds of candidates."""
    return [choice for arithmetic in ARITHMETIC for choice in arithmetic.choices()]


def forget() -> None:
    """Probe and choose anew from here on."""
    for arithmetic in ARITHMETIC:
        arithmetic.forget()
