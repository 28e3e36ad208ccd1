"""What the sampler section of a configuration may ask for, beyond the types of its keys. No torch: the desk asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import schedules
from .methods import FLOWS, FOLLOWING, NOISY, SCHEDULED, UNSEARCHED, fewest_steps


def faults(sampler: dict[str, Any], steps_given: bool) -> Iterator[tuple[str, str, Any]]:
    """(key, sentence, value) of what cannot work with this method.

    A schedule's file says how many steps there are, and num_sampling_steps becomes that, in place; it is a fault where
    the user gave another number (`steps_given`).
    """
    method, file = sampler["sample_method"], sampler["schedule"]
    choices = ", ".join(SCHEDULED)
    if (asked := sampler["num_sampling_steps"]) is not None and asked < (fewest := fewest_steps(method)):
        yield "num_sampling_steps", f"{method} takes {fewest} steps or more", asked
    if sampler["noise"] == "path" and method in NOISY and method not in SCHEDULED:
        yield "noise", f"{method} draws noise that follows no path; expected draws, or one of {choices}", "path"
    if file is None:
        return
    if method not in FOLLOWING:
        yield "schedule", f"{method} takes no schedule; expected one of {', '.join(FOLLOWING)}", file
        return
    try:
        steps = len(schedules.read(Path(file)))
    except OSError as error:
        yield "schedule", f"cannot be read: {error.strerror}", file
        return
    except ValueError as error:
        yield "schedule", str(error), file
        return
    if method in FLOWS and schedules.read(Path(file))[0] == 0:
        yield "schedule", f"entry 0 is 0.0, where {method} has nothing left to do", file
    given = sampler["num_sampling_steps"]
    if steps_given and given != steps:
        yield "num_sampling_steps", f"expected {steps}, the entries of sampler.schedule", given
    sampler["num_sampling_steps"] = steps


def videos(folder: Path) -> list[Path]:
    """The .mp4 files of a folder, by name."""
    return sorted(folder.glob("*.mp4"))


# What a solver's configuration must say, if anything, for a schedule to mean what it does here.
TAKEN = {"FlowMatchEulerDiscrete": {"invert_sigmas": False}}
# And for a search to know its steps; a second order in DPM's, as the release has it.
SEARCHED: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscrete": {"stochastic_sampling": False},
    "DPMSolverMultistep": {
        **{"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "euler_at_final": False},
        **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False),
        **{"use_flow_sigmas": False, "thresholding": False},
    },
    "EulerDiscrete": dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
}


def solver_faults(sampler: dict[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(key, sentence, value) of what a checkpoint's own configuration of its solver, `settings`, does not allow."""
    method = sampler["sample_method"]
    for key, tables in (("schedule", (TAKEN,)), ("search", (TAKEN, SEARCHED))):
        for name, value in ((n, v) for table in tables for n, v in table.get(method, {}).items()):
            if sampler[key] is not None and settings.get(name, value) not in (value, None):
                said, needed = json.dumps(settings[name]), json.dumps(value)
                yield key, f"this checkpoint's {method} has {name}: {said}; schedules are for {needed}", sampler[key]


def search_faults(
    sampler: dict[str, Any], recorded: int, given: Callable[[str], bool]
) -> Iterator[tuple[str, str, Any]]:
    """(key, sentence, value) of what a search of a schedule, in a recording of so many steps, cannot work with.
    `given` says whether the user set a key."""
    method, steps, search = sampler["sample_method"], sampler["num_sampling_steps"], sampler["search"]
    for name in ("neighbour_type", "monte_carlo_iters", "videos_path"):
        if search != "ays" and given(name):
            yield name, "belongs to sampler.search=ays", sampler[name]
    if search is None:
        if sampler["save_dir"] is not None:
            yield "save_dir", "no schedule is searched that could be put there (sampler.search)", sampler["save_dir"]
        return
    if method not in SCHEDULED:
        reason = UNSEARCHED.get(method)
        why = f"none is searched for {method}: {reason}" if reason else f"{method} takes no schedule"
        yield "search", f"{why}; expected one of {', '.join(SCHEDULED)}", search
        return
    if sampler["schedule"] is not None:
        yield "schedule", "a schedule is given or searched, not both", sampler["schedule"]
    if search == "ays" and method in FLOWS:
        yield "search", f"Align Your Steps is of noise levels that are finite, and {method} begins without data", search
        return
    if search == "ays":
        folder = sampler["videos_path"]
        if folder is not None and not videos(Path(folder)):
            yield "videos_path", "there is no folder with .mp4 files", folder
        if steps < 3:
            yield "num_sampling_steps", "expected at least 3: the ends stay where they are", steps
        return
    if method in NOISY and sampler["noise"] != "path":
        sentence = "steps that are left out can only be judged on noise that is the same for all; expected path"
        yield "noise", sentence, sampler["noise"]
    if not 2 <= steps < recorded:
        sentence = f"expected 2 to {recorded - 1}, fewer than the {recorded} of recording.steps that are searched in"
        yield "num_sampling_steps", sentence, steps
