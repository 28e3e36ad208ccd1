"""What a scheme is calibrated by, made of a layer's recorded statistics: one function for each need of `rules.Need`.

    range               Range                   by the observer, over all batches and steps
    range_by_step       tuple[Range, ...] [S]   the same for each step by itself
    absmax_by_channel   float32 [K]             the largest magnitude of each input channel

All of them pass through JSON, in which calibrate hands them on, unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from runner.quant.observers import Range, observe
from runner.quant.rules import Need, Scheme
from runner.recording.statistics import LayerStatistics

Calibrated = Range | tuple[Range, ...] | Tensor
Observer = Callable[[LayerStatistics], Range]


def calibrate(scheme: Scheme, statistics: LayerStatistics, quant: Mapping[str, Any]) -> Calibrated:
    """What `scheme` needs of a layer; `quant` is the section that names the observer and its percentile."""

    def observer(seen: LayerStatistics) -> Range:
        return observe(quant["observer"], seen, quant["percentile"], scheme.levels, scheme.symmetric)

    return NEEDS[scheme.need](statistics, observer)


def one_range(statistics: LayerStatistics, observer: Observer) -> Range:
    """The range over all batches and steps."""
    return observer(statistics)


def range_by_step(statistics: LayerStatistics, observer: Observer) -> tuple[Range, ...]:
    """The range of each step by itself, in the order of steps."""
    return tuple(observer(statistics.at(step)) for step in range(statistics.minimum.shape[1]))


def absmax_by_channel(statistics: LayerStatistics, observer: Observer) -> Tensor:
    """The largest magnitude of each input channel over all batches and steps: float32 [K]."""
    return statistics.absmax.amax((0, 1)).float()


NEEDS: dict[Need, Callable[[LayerStatistics, Observer], Calibrated]] = {
    "range": one_range,
    "range_by_step": range_by_step,
    "absmax_by_channel": absmax_by_channel,
}


def to_json(calibrated: Calibrated) -> Any:
    """As numbers, lists and objects; a float32 passes through exactly."""
    if isinstance(calibrated, Range):
        return asdict(calibrated)
    return calibrated.tolist() if isinstance(calibrated, Tensor) else [asdict(each) for each in calibrated]


def from_json(need: Need, found: Any) -> Calibrated:
    """The inverse of `to_json` for what was made for this need."""
    if need == "range":
        return Range(**found)
    return tuple(Range(**each) for each in found) if need == "range_by_step" else torch.tensor(found)
