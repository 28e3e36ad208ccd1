"""Names of the solvers and what each can take, for those who must not import torch."""

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
SCHEDULED = ("EulerAncestralDiscrete", "EulerDiscrete", "DDIM", "DPMSolverMultistep", "RFLOW")
# These follow a schedule that is given, too; a search for one is made for those above.
FOLLOWING = (*SCHEDULED, "FlowMatchEulerDiscrete", "UniPCMultistep")
FLOWS = ("RFLOW",)  # from pure noise to data: no timestep is 0, and the first is noise alone
NOISY = ("DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete")  # those that draw noise at every step
FEWEST = {"PNDM": 4}  # steps; one is the fewest of the others


def fewest_steps(method: str) -> int:
    """The fewest steps that a method can take: PNDM's Runge-Kutta start makes up its first four."""
    return FEWEST.get(method, 1)
