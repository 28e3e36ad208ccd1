"""What the processes of a run may be, for the desk. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def faults(config: Mapping[str, Any], joint_asked: bool) -> Iterator[tuple[str, str, Any]]:
    """Key, sentence and value of what does not fit together. `joint_asked`: guidance_batch=joint was set on purpose."""
    parallel, sampler = config["parallel"], config["sampler"]
    size, nodes = parallel["world_size"], parallel["nodes"]
    needed = (2 if parallel["cfg"] else 1) * parallel["ulysses"]
    if size != needed:
        sentence = f"expected {needed}: parallel.cfg takes {2 if parallel['cfg'] else 1}, parallel.ulysses "
        yield "parallel.world_size", f"{sentence}{parallel['ulysses']}", size
    elif size % nodes:
        yield "parallel.nodes", f"expected a divisor of parallel.world_size, which is {size}", nodes
    if nodes > 1 and config["launch"] != "print":
        yield "parallel.nodes", "each machine is started by hand: launch=print shows what to type", nodes
    if parallel["cfg"] and sampler["guidance_scale"] <= 1:
        sentence = f"without guidance there is one branch: sampler.guidance_scale is {sampler['guidance_scale']}"
        yield "parallel.cfg", sentence, True
    if parallel["cfg"] and joint_asked:
        yield "sampler.guidance_batch", "expected separate: with parallel.cfg each branch has a process", "joint"


def head_faults(parallel: Mapping[str, Any], heads: int) -> Iterator[tuple[str, str, Any]]:
    """The same of processes that share one sequence: outside of attention each has some tokens, in it some heads."""
    if heads % parallel["ulysses"]:
        yield (
            "parallel.ulysses",
            f"expected a divisor of the {heads} heads of the model's attention",
            parallel["ulysses"],
        )
