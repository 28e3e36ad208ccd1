"""Schedule files: a JSON list of ascending floats in [0, 1], the timesteps divided by 1000, as msModelSlim writes it.

The file holds exactly what the transformer gets; a solver takes it from the last to the first. No torch here.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "searched_schedule.txt"
TRAINED_STEPS = 1000  # a timestep of 1000 stands as 1.0 in the file


def read(file: Path) -> list[float]:
    """The entries of a schedule file, ascending. Raises OSError, or ValueError with what is wrong where."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is no text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    if not isinstance(entries, list):
        raise ValueError(f"holds no list but {_kind(entries)}")
    for place, entry in enumerate(entries):
        if isinstance(entry, bool) or not isinstance(entry, (int, float)) or not math.isfinite(entry):
            raise ValueError(f"entry {place} is {json.dumps(entry)}, not a number")
        if not 0 <= entry <= 1:
            raise ValueError(f"entry {place} is {entry}, outside [0, 1]: entries are timesteps divided by 1000")
        if place and entry <= entries[place - 1]:
            raise ValueError(f"entry {place} is {entry}, not above entry {place - 1}, {entries[place - 1]}")
    if len(entries) < 2:
        raise ValueError(f"holds {len(entries)} {'entry' if len(entries) == 1 else 'entries'}; expected at least 2")
    return [float(entry) for entry in entries]


def write(timesteps: Sequence[float], file: Path) -> None:
    """Write descending timesteps (of 1000) as such a file."""
    file.write_text(json.dumps([timestep / TRAINED_STEPS for timestep in reversed(timesteps)], indent=4))


def timesteps(file: Path) -> list[float]:
    """The timesteps (of 1000) that a schedule file names, descending, as a solver takes them."""
    return [entry * TRAINED_STEPS for entry in reversed(read(file))]


@contextmanager
def taken(scheduler: Any, timesteps: Sequence[float] | None) -> Iterator[None]:
    """While active the scheduler takes these timesteps, whatever its pipeline asks of it: some pipelines have no word
    for timesteps, others a schedule of sigmas of their own. None changes nothing."""
    if timesteps is None:
        yield
        return
    original = scheduler.set_timesteps

    @functools.wraps(original)  # pipelines ask for its signature
    def take(*args: Any, **kwargs: Any) -> None:
        asked = inspect.signature(original).bind(*args, **kwargs).arguments
        original(timesteps=timesteps, device=asked.get("device"))

    scheduler.set_timesteps = take
    try:
        yield
    finally:
        del scheduler.set_timesteps


def _kind(value: object) -> str:
    return {dict: "keys and values", str: "a text", type(None): "null"}.get(type(value), json.dumps(value))
