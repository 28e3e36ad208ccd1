"""Quantization. A scheme is one module with two verbs, in the style of gpt-fast:

    quantize(model, ranges, layers) -> (tensors, description)    make what is exported; the model stays as it is
    apply(model, tensors, description) -> model                  swap the linears, load the rest

Everything else serves them: `observers` turn recorded statistics into ranges, `layers` picks what is quantized,
`export` alone knows file and key names, `linear` and `kernels` compute, `quality` and `ledger` say what it cost and
gained.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from runner.quant.observers import Range

SCHEMES = {"w8a8": "runner.quant.w8a8"}


class Scheme(Protocol):
    """What the module of a scheme offers."""

    def quantize(
        self, model: nn.Module, ranges: Mapping[str, Range], layers: Iterable[str]
    ) -> tuple[dict[str, Tensor], dict[str, str]]: ...

    def apply(self, model: nn.Module, tensors: Mapping[str, Tensor], description: Mapping[str, str]) -> nn.Module: ...


def scheme(name: str) -> Scheme:
    """The module of scheme `name` (the value of `quant.scheme`); ValueError where there is none."""
    if name not in SCHEMES:
        raise ValueError(f"quant.scheme={name}: there is no such scheme yet; there is {', '.join(SCHEMES)}")
    return cast(Scheme, importlib.import_module(SCHEMES[name]))
