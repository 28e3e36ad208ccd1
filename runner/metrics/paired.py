"""An interval for the difference of two configurations that were run on the same prompts and seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class PairedInterval(NamedTuple):
    """The mean of a - b with its confidence limits; the limits are None where fewer than two pairs leave nothing to
    say."""

    difference: float
    low: float | None
    high: float | None
    n: int


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedInterval:
    """Mean of a[i] - b[i] with Student's interval for paired samples: d +- t(n - 1) s / sqrt(n).

    Pairing takes out what makes prompts differ from each other, which is most of the spread of a quality score.
    Student's interval rather than a bootstrap: it needs no seed, and it still covers at the handful of prompts of a
    quick run, where percentile bootstraps are too narrow (Hesterberg, "What Teachers Should Know About the
    Bootstrap", The American Statistician 69, 2015). Where every pair differs by the same amount its width is zero:
    read `n` beside it.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908). Raises ValueError for unpaired, empty or
    non-finite data.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired scores come in equal numbers, at least one: got {len(a)} and {len(b)}")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, exclusive: got {confidence}")
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError("paired scores must be finite")
    n = len(differences)
    mean = math.fsum(differences) / n
    if n == 1:
        return PairedInterval(mean, None, None, n)
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    half = student_quantile(confidence, n - 1) * math.sqrt(variance / n)
    return PairedInterval(mean, mean - half, mean + half, n)


def student_quantile(confidence: float, freedom: int) -> float:
    """The t for which a Student variable with an integer number of degrees of freedom lies in [-t, t] with this
    probability."""
    low, high = 0.0, 1.0
    while student_mass(high, freedom) < confidence:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        if student_mass(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def student_mass(t: float, freedom: int) -> float:
    """P(|T| <= t) for integer degrees of freedom: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3
    and 26.7.4.

    Written out here because it is the one thing that would make scipy a requirement.
    """
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term, series = cosine if odd else 1.0, 0.0
    for k in range(2 + odd, freedom + 1, 2):
        series += term
        term *= cosine * cosine * (k - 1) / k
    return 2 / math.pi * (theta + sine * series) if odd else sine * series
