"""Quantization. A scheme is one module that says what its linears are and how one is made (`Scheme`), and an entry in
`rules`. What is the same for all of them is generic, two verbs in the style of gpt-fast (`swap`):

    quantize(model, scheme, layers, calibrated) -> (tensors, description)    what is exported; the model stays as it is
    apply(model, tensors, description) -> model                              swap the linears, load the rest

Everything else serves them: `layers` picks what is quantized, `observers` turn recorded statistics into ranges and
`calibration` into what a scheme asks for, `export` alone knows file and key names, `parts` what a layer consists of
there, `linear` is what every quantized linear has, `kernels` compute, `quality` and `ledger` say what it cost and
gained.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from runner.quant import rules

if TYPE_CHECKING:
    from torch import Tensor, nn

    from runner.quant.linear import QuantizedLinear
    from runner.quant.parts import Part


class Scheme(Protocol):
    """What the module of a scheme offers."""

    PARTS: Mapping[str, Part]  # what a layer consists of, in the order of the exported files
    Linear: type[QuantizedLinear]  # what computes: Linear(**parts)

    def quantize_linear(self, name: str, linear: nn.Linear, calibrated: Any, **parameters: Any) -> dict[str, Tensor]:
        """The parts of one linear, on the CPU; `calibrated` is what the scheme needs (`calibration`), `name` is for
        errors, `parameters` are those of `quant` that its rules list."""


def scheme(name: str) -> Scheme:
    """The module of scheme `name` (the value of `quant.scheme`); ValueError where there is none."""
    return cast(Scheme, importlib.import_module(rules.known(name).module))


def tagged(tag: str) -> Scheme:
    """The module of the scheme whose layers have this tag; KeyError where there is none."""
    return scheme(rules.tags()[tag])
