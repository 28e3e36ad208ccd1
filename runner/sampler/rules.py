"""What the sampler section of a configuration may ask for, beyond the types of its keys. No torch: the desk asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import schedules
from .methods import NOISY, SCHEDULED


def faults(sampler: dict[str, Any], steps_given: bool) -> Iterator[tuple[str, str, Any]]:
    """(key, sentence, value) of what cannot work with this method.

    A schedule's file says how many steps there are, and num_sampling_steps becomes that, in place; it is a fault where
    the user gave another number (`steps_given`).
    """
    method, file = sampler["sample_method"], sampler["schedule"]
    choices = ", ".join(SCHEDULED)
    if sampler["noise"] == "path" and method in NOISY and method not in SCHEDULED:
        yield "noise", f"{method} draws noise that follows no path; expected draws, or one of {choices}", "path"
    if file is None:
        return
    if method not in SCHEDULED:
        yield "schedule", f"{method} takes no schedule; expected one of {choices}", file
        return
    try:
        steps = len(schedules.read(Path(file)))
    except OSError as error:
        yield "schedule", f"cannot be read: {error.strerror}", file
        return
    except ValueError as error:
        yield "schedule", str(error), file
        return
    given = sampler["num_sampling_steps"]
    if steps_given and given != steps:
        yield "num_sampling_steps", f"expected {steps}, the entries of sampler.schedule", given
    sampler["num_sampling_steps"] = steps
