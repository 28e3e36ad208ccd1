import math
import random

import pytest
from scipy import stats

from runner.metrics import paired_interval
from runner.metrics.paired import student_mass, student_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 29, 300])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_student_is_that_of_scipy(freedom: int, confidence: float) -> None:
    t = float(stats.t.ppf((1 + confidence) / 2, freedom))
    assert student_quantile(confidence, freedom) == pytest.approx(t, rel=1e-9)
    assert student_mass(t, freedom) == pytest.approx(confidence, abs=1e-12)


def test_interval_is_that_of_scipys_paired_test() -> None:
    dice = random.Random(3)
    a = [dice.gauss(0.8, 0.2) for _ in range(17)]
    b = [x + dice.gauss(0.05, 0.1) for x in a]
    result = stats.ttest_rel(a, b)
    limits = result.confidence_interval(0.95)
    interval = paired_interval(a, b)
    assert interval.difference == pytest.approx(sum(a) / 17 - sum(b) / 17)
    assert (interval.low, interval.high) == (pytest.approx(limits.low), pytest.approx(limits.high))
    assert interval.n == 17


@pytest.mark.parametrize("n", [4, 60])
def test_it_covers_the_truth_as_often_as_it_says(n: int) -> None:
    """Paired by a large per-prompt effect that must cancel; 95 % coverage, tested to four standard errors of the
    simulation."""
    dice, trials, truth = random.Random(n), 2000, -0.1
    hits = 0
    for _ in range(trials):
        prompts = [dice.gauss(0, 10) for _ in range(n)]
        quantized = [p + truth + dice.gauss(0, 0.3) for p in prompts]
        _, low, high, _ = paired_interval(quantized, prompts)
        assert low is not None and high is not None
        hits += low <= truth <= high
    assert abs(hits / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_it_covers_scores_that_rarely_differ() -> None:
    """What the judge gives: thirds, mostly equal. At the benchmark's 300 clips the interval holds its 95 % to within
    2 points."""
    dice, trials, truth = random.Random(1), 400, (0.04 - 0.06) / 3
    hits = 0
    for _ in range(trials):
        differences = dice.choices([-1 / 3, 0.0, 1 / 3], [0.06, 0.90, 0.04], k=300)
        _, low, high, _ = paired_interval(differences, [0.0] * 300)
        assert low is not None and high is not None
        hits += low <= truth <= high
    assert 0.93 <= hits / trials <= 0.98


def test_edges() -> None:
    assert paired_interval([0.5], [0.25]) == (0.25, None, None, 1)
    assert paired_interval([1, 1, 1], [0, 0, 0]) == (1.0, 1.0, 1.0, 3)
    for a, b in ([], []), ([1.0], [1.0, 2.0]), ([math.inf, 1.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match="paired"):
            paired_interval(a, b)
    with pytest.raises(ValueError, match="confidence"):
        paired_interval([1.0, 2.0], [1.0, 1.0], confidence=95)
