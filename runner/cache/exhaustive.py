"""The search that msModelSlim makes, for comparison: every candidate is a whole generation of every prompt.

Two stages, after the facts of its release 26.1: first one range length, the least that promises the ratio on paper, at
every place; then longer ranges at the three best places, from step 0 and from step 5. The score is the mean squared
difference of the decoded frames from the uncached ones (theirs reads them back from a lossy video file). No time is
measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runner.cache.policy import Rectangle

STARTS = (0, 5)  # the step starts that are tried; the first stage has the last of them
INTERVAL = 2  # where none is given
BEST = 3  # places that the second stage goes on with
LONGER = 8  # lengths that it tries at each


@dataclass(frozen=True)
class Found:
    """The answer, its score, and the score of everything that was tried, in order."""

    answer: Rectangle
    score: float
    tried: tuple[tuple[Rectangle, float], ...]


def least_length(steps: int, blocks: int, ratio: float, interval: int) -> int:
    """Blocks that must be reused at interval `interval` from step 5 on for `ratio`, blocks alone counting as time.

    ValueError where that is none or all of them: then there is nothing to search, as in the original."""
    start = STARTS[-1]
    refreshed = (steps - start) // interval
    reusing = (steps - start) - refreshed
    length = int(blocks * (1 - (steps / ratio - start - refreshed) / reusing)) if reusing > 0 else 0
    if not 0 < length < blocks:
        raise ValueError(
            f"cache.ratio={ratio:g} with interval {interval} over {steps} steps asks for {length} of {blocks} blocks; "
            "the exhaustive search needs at least one and fewer than all"
        )
    return length


def at_most(steps: int, blocks: int, ratio: float, interval: int) -> int:
    """How many candidates both stages may try; ValueError as above."""
    length = least_length(steps, blocks, ratio, interval)
    return max(1, blocks - length - 1) + BEST * (LONGER * len(STARTS) - 1)


def exhaustive(steps: int, blocks: int, ratio: float, interval: int, score: Callable[[Rectangle], float]) -> Found:
    """Run both stages; `score` generates all prompts under a rectangle. Block 0 is never reused, as in the original."""
    length, start = least_length(steps, blocks, ratio, interval), STARTS[-1]
    tried: dict[Rectangle, float] = {}

    def attempt(candidate: Rectangle) -> None:
        if candidate not in tried:
            tried[candidate] = score(candidate)

    for first in range(1, blocks - length):
        attempt(Rectangle(start, interval, first, length))
    if not tried:  # one block is left over: there is one place
        attempt(Rectangle(start, interval, 1, length))
    places = sorted(tried, key=lambda candidate: tried[candidate])[:BEST]
    for place in places:
        for longer in range(length, length + LONGER):
            if place.block_start + longer < blocks:
                for begin in STARTS:
                    attempt(Rectangle(begin, interval, place.block_start, longer))
    answer = min(tried, key=lambda candidate: tried[candidate])
    return Found(answer, tried[answer], tuple(tried.items()))
