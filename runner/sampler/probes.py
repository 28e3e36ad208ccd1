"""Where a search perturbs a recorded run, and how often the searches call the model. No torch: the desk plans with it.

What becomes of an error is measured along a coarse run over some of the recorded nodes: the same run, going on from one
of its states with an error added.
"""

from __future__ import annotations

STRIDE = 5  # recorded nodes between two of the coarse run
PERTURBED = 8  # continuations of one search, over all of its prompts
TRIED = 3  # schedules that are run to choose among
CANDIDATES = 11  # timesteps that Align Your Steps compares for a node, its present one among them


def coarse(steps: int) -> list[int]:
    """The recorded nodes, of `steps`, that the coarse run goes through."""
    return list(range(0, steps, STRIDE))


def places(steps: int) -> list[int]:
    """Where in the coarse run an error is added, each once: evenly spread, never at the start."""
    last = len(coarse(steps)) - 1
    return sorted({round(k * last / PERTURBED) for k in range(1, PERTURBED + 1)} - {0})


def evaluations(steps: int, prompts: int) -> int:
    """Evaluations of the model: the coarse run of each prompt, and what follows each error."""
    nodes, perturbed = len(coarse(steps)), places(steps)
    return min(prompts, len(perturbed)) * nodes + sum(nodes - place for place in perturbed)


def to_align(steps: int, iters: int) -> int:
    """Evaluations of the model by Align Your Steps: two a draw, for each candidate of each node but the ends."""
    return max(0, steps - 2) * CANDIDATES * iters * 2
