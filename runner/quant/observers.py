"""From the recorded statistics of a linear's input to the range that its integers span.

Every observer is a pure function of `LayerStatistics`, so all of them work on one recording, without a replay. Ranges
always contain zero: zero is then a level of its own, which padding and masked tokens rely on. They are for a grid of
so many `levels`, 256 by default; a symmetric grid, whose zero point is fixed in its middle, spans what is as far below
zero as above (its integers are -(levels/2 - 1) to levels/2 - 1: one level less).

    minmax       the true extremes: nothing that was recorded is clipped
    mean_minmax  the mean over batches of each batch's extremes (msModelSlim's default; it clips)
    percentile   what holds the given share of the elements
    histogram    torch.ao's HistogramObserver: a greedy walk that trims the tails while the expected error falls
    mse          a search over both ends for the least expected error of the quantizer that is really used
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runner.recording.statistics import HISTOGRAM_EDGES, LayerStatistics

Array = NDArray[np.float64]
LEVELS = 256  # of an 8-bit grid: the default
EPS = 2.0**-23  # the least scale (float32's epsilon): an input that is always zero must not divide by zero


@dataclass(frozen=True)
class Range:
    """The real numbers that an integer grid spans; ValueError unless both are finite and in order."""

    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum <= self.maximum):
            raise ValueError(f"no range: minimum {self.minimum}, maximum {self.maximum}")


def observe(
    name: str,
    statistics: LayerStatistics,
    percentile: float = 99.99,
    levels: int = LEVELS,
    symmetric: bool = False,
) -> Range:
    """The range that the observer `name` (the value of `quant.observer`) reads from a layer's statistics."""
    if name not in OBSERVERS:
        raise ValueError(f"quant.observer={name}: there is no such observer; there are {', '.join(OBSERVERS)}")
    if name == "percentile":
        found = percentile_range(statistics, percentile)
    elif name == "histogram":
        found = histogram(statistics, levels)
    elif name == "mse":
        return mse(statistics, levels, symmetric)
    else:
        found = OBSERVERS[name](statistics)
    return mirrored(found) if symmetric else found


def mirrored(range_: Range) -> Range:
    """The least range that is as far below zero as above and contains this one."""
    top = max(-range_.minimum, range_.maximum)
    return Range(-top, top)


def minmax(statistics: LayerStatistics) -> Range:
    """The true minimum and maximum over all batches and steps."""
    return _with_zero(float(statistics.minimum.min()), float(statistics.maximum.max()))


def mean_minmax(statistics: LayerStatistics) -> Range:
    """The mean over batches of each batch's extremes; a batch is one forward, that is one step of one prompt."""
    # fsum rounds once, so the order of the prompts cannot matter.
    low, high = (x.flatten().double().tolist() for x in (statistics.minimum, statistics.maximum))
    return _with_zero(math.fsum(low) / len(low), math.fsum(high) / len(high))


def percentile_range(statistics: LayerStatistics, percentile: float = 99.99) -> Range:
    """The range that holds `percentile` percent of the elements, half of the others beyond either end.

    Elements count as evenly spread within their histogram bin. 100 is `minmax`.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"quant.percentile={percentile}: must be above 0 and at most 100")
    if percentile == 100:
        return minmax(statistics)
    edges, counts = _occupied(statistics)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    tail = (1 - percentile / 100) / 2
    low, high = np.interp([tail, 1 - tail], below, edges)
    return _with_zero(low, high)


def histogram(statistics: LayerStatistics, levels: int = LEVELS) -> Range:
    """torch.ao's HistogramObserver (its non-linear parameter search) on the recorded bins.

    It differs from `mse` in two ways. It is a greedy walk: from either end it cuts 1e-5 of the mass at a time, on the
    side where that shortens the range more, bin by bin, and stops at the first cut that raises the error. And its error
    is that of `levels` equal cells from end to end, without the rounding of the zero point to an integer.
    """
    edges, counts = _occupied(statistics)
    start, stop = trim(edges, counts, levels=levels)
    return _with_zero(edges[start], edges[stop])


def mse(statistics: LayerStatistics, levels: int = LEVELS, symmetric: bool = False) -> Range:
    """The range of least mean squared quantization error, over the whole plane of both ends.

    The error is the exact expectation, for elements evenly spread within their bins, of the asymmetric quantizer that
    runs: one step less than levels, integer zero point, clipping at both ends. A grid over the two ends, made finer in
    three rounds. Of a symmetric quantizer both ends are one.
    """
    edges, counts = _occupied(statistics)
    full = _with_zero(edges[0], edges[-1])
    if symmetric:
        full, levels = mirrored(full), levels - 1
    # Ends as powers of two below the extremes: outliers can be a thousand times the bulk.
    best, spacing = np.zeros(2), 0.5
    offsets = np.arange(25) * spacing
    for _ in range(4):
        exponents = [np.unique(np.maximum(center + offsets, 0)) for center in best]
        low = full.minimum * np.exp2(-exponents[0]) if full.minimum < 0 else np.zeros(1)
        high = full.maximum * np.exp2(-exponents[1]) if full.maximum > 0 else np.zeros(1)
        ends = np.stack(np.meshgrid(low, high, indexing="ij"), axis=-1).reshape(-1, 2)
        grid = np.stack([-high, high], axis=-1) if symmetric else ends
        errors = quantization_error(edges, counts, grid[:, 0], grid[:, 1], levels)
        row, column = divmod(int(errors.argmin()), len(high))
        best = np.array([exponents[0][min(row, len(low) - 1)], exponents[1][column]])
        minimum, maximum = grid[int(errors.argmin())]
        spacing /= 4
        offsets = np.arange(-4, 5) * spacing
    return _with_zero(minimum, maximum)


OBSERVERS: dict[str, Callable[[LayerStatistics], Range]] = {
    "minmax": minmax,
    "mean_minmax": mean_minmax,
    "percentile": percentile_range,
    "histogram": histogram,
    "mse": mse,
}


def trim(edges: Array, counts: Array, step: float = 1e-5, levels: int = LEVELS) -> tuple[int, int]:
    """The greedy walk of `histogram` over any bins: edges [n+1], counts [n] -> the kept edges (start, stop)."""
    total, below, edge = float(counts.sum()), np.cumsum(counts).tolist(), edges.tolist()
    start, last = 0, len(counts) - 1
    alpha, beta, least = 0.0, 1.0, math.inf
    while alpha < beta:
        left, right = start, last
        while left < last and below[left] < (alpha + step) * total:
            left += 1
        while right > start and below[right] > (beta - step) * total:
            right -= 1
        if edge[left] - edge[start] > edge[last + 1] - edge[right + 1]:
            alpha, trimmed = alpha + step, (left, last)
        else:
            beta, trimmed = beta - step, (start, right)
        if trimmed == (start, last):
            continue
        error = _cell_error(edges, counts, trimmed[0], trimmed[1] + 1, levels)
        if error > least:
            break
        least, (start, last) = error, trimmed
    # The first cut is taken unseen; where bins are wide it can cost more than all later ones gain.
    if _cell_error(edges, counts, 0, len(counts), levels) < least:
        return 0, len(counts)
    return start, last + 1


def _cell_error(edges: Array, counts: Array, start: int, stop: int, levels: int) -> float:
    cell = max((edges[stop] - edges[start]) / levels, EPS)
    return float(_squared_error(edges, counts, np.array([edges[start] + cell / 2]), np.array([cell]), levels)[0])


def quantization_error(edges: Array, counts: Array, minimum: Array, maximum: Array, levels: int = LEVELS) -> Array:
    """Mean squared error [c] of the asymmetric quantizer with ranges minimum, maximum [c] (zero inside)."""
    step = np.maximum((maximum - minimum) / (levels - 1), EPS)
    return _squared_error(edges, counts, np.rint(minimum / step) * step, step, levels) / counts.sum()


def _squared_error(edges: Array, counts: Array, first: Array, step: Array, levels: int) -> Array:
    """Expected sum of squared distances [c] to the nearest level first + step * (0 .. levels - 1), first and step [c].

    Elements are evenly spread within their bins, so each bin's share is an integral of a piecewise parabola. With u in
    units of steps from the first level, k its nearest level and r = u - k, that integral from 0 to u is k/12 + r^3/3.
    """
    u = (edges[None] - first[:, None]) / step[:, None]
    level = np.clip(np.rint(u), 0, levels - 1)
    rest = u - level
    integral = np.diff(level / 12 + rest**3 / 3, axis=1)
    width = np.diff(u, axis=1)
    point = width < 1e-9  # a bin cut to a point by the true extremes
    mean = np.where(point, rest[:, 1:] ** 2, integral / np.where(point, 1.0, width))
    return (mean * counts).sum(1) * step**2


def _occupied(statistics: LayerStatistics) -> tuple[Array, Array]:
    """Edges [n+1] and counts [n] of the bins in use, all batches and steps merged, cut to the true extremes."""
    counts = np.asarray(statistics.histogram.flatten(0, -2).double().sum(0))
    low, high = float(statistics.minimum.min()), float(statistics.maximum.max())
    Range(low, high)  # refuses what is not finite
    used = counts.nonzero()[0]
    if not len(used):
        raise ValueError("the histogram of these statistics is empty")
    first, last = used[0], used[-1]
    edges = np.asarray(HISTOGRAM_EDGES, dtype=np.float64)[first : last + 2].copy()
    # The outermost bins of all also hold what lies beyond their edge.
    edges[0] = low if first == 0 else edges[0]
    edges[-1] = high if last == len(counts) - 1 else edges[-1]
    return edges.clip(low, high), counts[first : last + 1]


def _with_zero(minimum: float, maximum: float) -> Range:
    return Range(min(float(minimum), 0.0), max(float(maximum), 0.0))
