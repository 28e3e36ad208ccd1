from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner.quant.observers import OBSERVERS, Range, observe, percentile_range, quantization_error, trim
from runner.recording.statistics import BINS, HISTOGRAM_EDGES, LayerStatistics
from runner.recording.statistics import histogram as bin_counts

DISTRIBUTIONS = ["normal", "laplace", "student", "outliers", "positive", "skewed"]


def draw(kind: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    x = {
        "normal": lambda: generator.normal(size=shape),
        "laplace": lambda: generator.laplace(size=shape),
        "student": lambda: generator.standard_t(3, size=shape),
        "outliers": lambda: generator.normal(size=shape) * np.where(generator.random(shape) < 1e-4, 300, 1),
        "positive": lambda: generator.random(shape) ** 2 + 0.1,
        "skewed": lambda: generator.gamma(0.5, size=shape) - 0.2,
    }[kind]()
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def statistics(x: Tensor) -> LayerStatistics:
    """x [B, S, M, K] -> what a recording of it holds."""
    flat = x.flatten(2)
    return LayerStatistics(flat.amin(2), flat.amax(2), x.abs().amax(2), bin_counts(flat))


def error(x: Tensor, minimum: float, maximum: float) -> float:
    """Mean squared error of the real quantizer on the real elements, in float64."""
    v = x.double().flatten()
    minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
    scale = max((maximum - minimum) / 255, 2.0**-23)
    zero = -128 - round(minimum / scale)
    q = (torch.round(v / scale) + zero).clamp(-128, 127)
    return float(((q - zero) * scale - v).square().mean())


def test_minmax_and_mean_minmax_on_a_worked_example() -> None:
    low = torch.tensor([[-1.0, -3.0], [-2.0, -2.0]])
    stats = LayerStatistics(low, -2 * low, torch.zeros(2, 2, 1), torch.zeros(2, 2, BINS))
    assert observe("minmax", stats) == Range(-3.0, 6.0)
    assert observe("mean_minmax", stats) == Range(-2.0, 4.0)
    assert observe("mean_minmax", stats.at(1)) == Range(-2.5, 5.0)


def test_percentile_cuts_the_share_it_says() -> None:
    x = draw("normal", (2, 2, 64, 256))
    for share in (90.0, 99.0, 99.9):
        found = percentile_range(statistics(x), share)
        inside = float(((x >= found.minimum) & (x <= found.maximum)).double().mean()) * 100
        assert inside == pytest.approx(share, abs=0.03 + (100 - share) / 50)  # bins are a sixteenth of an octave wide
    assert percentile_range(statistics(x), 100) == observe("minmax", statistics(x))
    with pytest.raises(ValueError, match="quant.percentile=0"):
        percentile_range(statistics(x), 0)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_mse_is_the_best_of_a_brute_force_grid(kind: str) -> None:
    """Within 3 % of the best range for the elements themselves, over 40 x 40 ranges; never worse than minmax."""
    x = draw(kind, (2, 2, 32, 128))
    low, high = float(x.min()), float(x.max())
    found = observe("mse", statistics(x))
    shrink = np.exp2(-np.linspace(0, 9, 40))
    every = [error(x, low * a, high * b) for a in (shrink if low < 0 else [0.0]) for b in shrink]
    reached = error(x, found.minimum, found.maximum)
    assert reached <= 1.03 * min(every)
    assert reached <= 1.001 * error(x, low, high)


def test_mse_error_is_that_of_the_quantizer_on_evenly_spread_elements() -> None:
    edges = np.array([-3.0, -1.0, -0.25, 0.0, 0.5, 2.0, 4.0])
    counts = np.array([1.0, 3.0, 10.0, 12.0, 4.0, 1.0])
    points = 40_000
    spread = [np.linspace(a, b, points, endpoint=False) + (b - a) / points / 2 for a, b in itertools.pairwise(edges)]
    for low, high in [(-3.0, 4.0), (-1.0, 2.0), (0.0, 1.0), (-0.3, 0.01)]:
        each = [error(torch.from_numpy(x), low, high) for x in spread]
        expected = float(np.average(each, weights=counts))
        found = quantization_error(edges, counts, np.array([low]), np.array([high]))[0]
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def torch_observer():  # noqa: ANN201
    quantization = pytest.importorskip("torch.ao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield lambda: quantization.HistogramObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_histogram_walks_like_torch_on_its_bins(torch_observer, kind: str) -> None:  # noqa: ANN001
    """On torch's own 2048 equal bins the walk ends at the very same edges, unless those are worse than no cut."""
    theirs = torch_observer()
    theirs(draw(kind, (64, 1024)))
    low, high = theirs._non_linear_param_search()
    edges = np.linspace(float(theirs.min_val), float(theirs.max_val), theirs.bins + 1)
    start, stop = trim(edges, theirs.histogram.double().numpy())
    width = edges[1] - edges[0]
    if kind == "outliers":
        assert (start, stop) == (0, theirs.bins)
        return
    assert edges[start] == pytest.approx(float(low), abs=width / 100)
    assert edges[stop] == pytest.approx(float(high), abs=width / 100)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_histogram_agrees_with_torch_on_the_same_data(torch_observer, kind: str) -> None:  # noqa: ANN001
    """On our own bins: as good as torch's range for the elements, within 15 % of its error."""
    x = draw(kind, (2, 4, 64, 256))
    theirs = torch_observer()
    theirs(x)
    low, high = theirs._non_linear_param_search()
    found = observe("histogram", statistics(x))
    assert error(x, found.minimum, found.maximum) <= error(x, float(x.min()), float(x.max()))
    assert error(x, found.minimum, found.maximum) <= 1.15 * error(x, float(low), float(high))


def test_outliers_are_cut_where_the_observer_is_made_for_it() -> None:
    stats = statistics(draw("outliers", (2, 2, 128, 256)))
    full = observe("minmax", stats)
    for name in ("mse", "histogram"):
        assert observe(name, stats).maximum <= full.maximum
    assert observe("percentile", stats, percentile=99.9).maximum < full.maximum / 20


values = st.floats(-1e4, 1e4, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32) | st.just(0.0)
tensors = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)).map(
        lambda flat: torch.tensor(flat).view(*shape, 1)
    )
)


@pytest.mark.parametrize("name", OBSERVERS)
@settings(max_examples=40, deadline=None)
@given(x=tensors, data=st.data())
def test_invariants(name: str, x: Tensor, data: st.DataObject) -> None:
    """Any order of prompts and steps gives the same range; it holds zero and nothing beyond the true extremes."""
    found = observe(name, statistics(x))
    assert min(float(x.min()), 0) <= found.minimum <= 0 <= found.maximum <= max(float(x.max()), 0)
    batches = data.draw(st.permutations(range(x.shape[0])))
    steps = data.draw(st.permutations(range(x.shape[1])))
    assert observe(name, statistics(x[batches][:, steps])) == found
    mirrored = observe(name, statistics(-x))
    if name in ("minmax", "mean_minmax"):
        assert mirrored == Range(-found.maximum, -found.minimum)


@settings(max_examples=40, deadline=None)
@given(x=tensors, share=st.floats(50, 100))
def test_percentiles_are_nested(x: Tensor, share: float) -> None:
    inner, outer = percentile_range(statistics(x), share / 2), percentile_range(statistics(x), share)
    slack = 1e-9 * (outer.maximum - outer.minimum)
    assert outer.minimum - slack <= inner.minimum and inner.maximum <= outer.maximum + slack


def test_values_beyond_the_outermost_bins_count() -> None:
    top = float(HISTOGRAM_EDGES[-1])
    x = torch.tensor([-4 * top, -1.0, 1.0, 2 * top]).view(1, 1, 4, 1)
    assert observe("histogram", statistics(x)).minimum >= -4 * top
    assert observe("mse", statistics(x)).maximum > top


def test_refusals() -> None:
    stats = statistics(draw("normal", (1, 1, 4, 4)))
    with pytest.raises(ValueError, match="no such observer; there are minmax, mean_minmax"):
        observe("entropy", stats)
    bad = LayerStatistics(stats.minimum, stats.maximum * math.inf, stats.absmax, stats.histogram)
    for name in OBSERVERS:
        with pytest.raises(ValueError, match="no range"):
            observe(name, bad)
    empty = LayerStatistics(stats.minimum, stats.maximum, stats.absmax, stats.histogram * 0)
    with pytest.raises(ValueError, match="empty"):
        observe("mse", empty)
