"""Names of the solvers and what each can take, for those who must not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# How a solver steps; ancestral: with noise; multistep: by the prediction before, too.
Family = Literal["ancestral", "euler", "multistep"]
# How it keeps x0 + sigma noise: as it stands, times 1 / sqrt(1 + sigma^2), or times 1 / (1 + sigma), which is
# (1 - t) x0 + t noise with sigma = t / (1 - t).
Space = Literal["exploding", "preserving", "flow"]


@dataclass(frozen=True)
class Solver:
    """What a search of a schedule must know of a solver. `predicts` is what its model predicts (runner.sampler.jumps);
    None: as its configuration says."""

    family: Family
    space: Space
    predicts: str | None = None


SAMPLE_METHODS = (
    "DDIM",
    "DDPM",
    "PNDM",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DEISMultistep",
)
# One evaluation a step, at exactly the timesteps that are given: these follow a schedule, and these are searched for.
# RFLOW is Open-Sora 1.2's own.
SOLVERS = {
    "EulerAncestralDiscrete": Solver("ancestral", "exploding"),
    "EulerDiscrete": Solver("euler", "exploding"),
    "DDIM": Solver("euler", "preserving"),
    "DPMSolverMultistep": Solver("multistep", "preserving"),
    "RFLOW": Solver("euler", "flow", "velocity"),
    "FlowMatchEulerDiscrete": Solver("euler", "flow", "flow_prediction"),
}
SCHEDULED = tuple(SOLVERS)
# From pure noise to data: no timestep is 0, and the first is noise alone.
FLOWS = tuple(name for name, solver in SOLVERS.items() if solver.space == "flow")
# These follow a schedule that is given, but none is searched for them, and why.
UNSEARCHED = {
    "UniPCMultistep": "its corrector goes back over each step with the prediction after it, so the nodes that a jump "
    "passes do not tell its error"
}
FOLLOWING = (*SCHEDULED, *UNSEARCHED)
NOISY = ("DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete")  # those that draw noise at every step
FEWEST = {"PNDM": 4}  # steps; one is the fewest of the others


def fewest_steps(method: str) -> int:
    """The fewest steps that a method can take: PNDM's Runge-Kutta start makes up its first four."""
    return FEWEST.get(method, 1)
