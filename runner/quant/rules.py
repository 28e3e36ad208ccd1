"""What is known of each scheme before torch is loaded: its module, its tag in exported files, what it is calibrated by.

A scheme is registered by its entry in SCHEMES, under the value of `quant.scheme` that asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# What calibration hands to a scheme for each linear: nothing (weights alone), the range of its inputs, one range for
# each step, or the largest magnitude of each input channel.
Need = Literal["nothing", "range", "range_by_step", "absmax_by_channel"]


@dataclass(frozen=True)
class Scheme:
    """One scheme. levels, symmetric: the integer grid of its inputs, which the observers choose a range for;
    parameters: the keys of `quant` that its quantization reads, passed to it by name."""

    module: str
    tag: str
    need: Need
    levels: int = 256
    symmetric: bool = False
    parameters: tuple[str, ...] = ()

    @property
    def calibration(self) -> tuple[Need, int, bool]:
        """All that a calibration depends on of its scheme."""
        return self.need, self.levels, self.symmetric


SCHEMES: dict[str, Scheme] = {
    "w8a8": Scheme("runner.quant.w8a8", tag="W8A8", need="range"),
}

USUAL = ("range", 256, False)  # a calibration like this has the key that it had when there was no other


def known(name: str) -> Scheme:
    """The scheme `name`; ValueError where there is none."""
    if name not in SCHEMES:
        raise ValueError(f"quant.scheme={name}: there is no such scheme yet; there is {', '.join(SCHEMES)}")
    return SCHEMES[name]


def tags() -> dict[str, str]:
    """The scheme of each tag."""
    return {scheme.tag: name for name, scheme in SCHEMES.items()}


def calibrates(quant: Mapping[str, Any]) -> bool:
    """Whether the scheme of a run (its `quant` section) needs anything recorded."""
    name = quant["scheme"]
    # A scheme that is not there yet is refused elsewhere; until then it is planned like most.
    return name != "none" and (name not in SCHEMES or SCHEMES[name].need != "nothing")


def parameters() -> tuple[str, ...]:
    """The full keys that any scheme has as its parameters."""
    return tuple(dict.fromkeys(f"quant.{key}" for scheme in SCHEMES.values() for key in scheme.parameters))


def counts_in_calibrate(quant: Mapping[str, Any], what: str) -> bool:
    """Whether a full key or an earlier stage has a part in what calibrate makes: the scheme has, where it asks for
    something unusual."""
    scheme = SCHEMES.get(quant["scheme"])
    return what != "quant.scheme" or (scheme is not None and scheme.calibration != USUAL)


def counts_in_quantize(quant: Mapping[str, Any], what: str) -> bool:
    """Whether a full key or an earlier stage has a part in what quantize makes, beside what is in calibrate's key."""
    if what in ("quant.include", "quant.exclude"):
        return not calibrates(quant)  # else calibrate has chosen the layers
    if what == "dump":
        return calibrates(quant)  # else no error is measured on its calls
    scheme = SCHEMES.get(quant["scheme"])
    return what not in parameters() or (scheme is not None and what.partition(".")[2] in scheme.parameters)
