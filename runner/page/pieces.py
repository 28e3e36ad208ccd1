"""Pieces of a page: figures, rows of a table, sections. The techniques' `rows` make them and the desk sets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.config import wording
from runner.page.values import number, pick

if TYPE_CHECKING:
    from runner.page.run import Run


@dataclass(frozen=True)
class Section:
    """A part of a page: a template, which is one <section>, and the values that it shows."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """A figure and what stands small below it: a spread, a percentile."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the ledger: a quantity, its value in the reference and in the changed model, and what changed."""

    label: str
    note: str
    reference: Value
    result: Value
    change: Value


@dataclass(frozen=True)
class Figure:
    """One number that tells runs apart: its name in files, its heading, where it is read, how it is shown.

    A plot shows quality against cost: of the figures that are one of the two, the one with the lowest rank that runs
    have.
    """

    key: str
    label: str
    read: Callable[[Run], float | None]
    show: Callable[[float | None], str]
    more_is_better: bool | None = None  # None where neither is
    cost: int | None = None  # its rank, if it says what a run costs
    quality: int | None = None  # its rank, if it says how good a run's results are


NOTHING = Value(wording.UNKNOWN)
BLANK = Value("")  # where a value would have no meaning, not where it is missing


def of_reference(arms: Any) -> Any:
    """What was measured of the reference, of two arms; earlier runs called it float."""
    found = pick(arms, "reference")
    return pick(arms, "float") if found is None else found


def of_changed(arms: Any) -> Any:
    """What was measured of the changed model; earlier runs called it quantized."""
    found = pick(arms, "changed")
    return pick(arms, "quantized") if found is None else found


def timing(spread: Any) -> Value:
    """A median of seconds over its quartiles."""
    low, high, n = (number(spread, key) for key in ("p25", "p75", "n"))
    between = f"{wording.seconds(low)} to {wording.seconds(high)}" if low is not None and high is not None else ""
    return Value(wording.seconds(number(spread)), ", ".join(filter(None, (between, f"n = {n:.0f}" if n else ""))))


def bounds(spread: Any) -> tuple[float, float] | None:
    """An interval if there is one, else the quartiles."""
    for ends in (("low", "high"), ("p25", "p75")):
        low, high = (number(spread, end) for end in ends)
        if low is not None and high is not None:
            return low, high
    return None


def limits(ratio: Any) -> str:
    """The interval of a ratio in words; empty where it has none."""
    ends = bounds(ratio)
    return f"{wording.times(ends[0])} to {wording.times(ends[1])}" if ends else ""
