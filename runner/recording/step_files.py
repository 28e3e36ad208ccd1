"""The names of the files that a recording writes step by step, and their order: by number, beyond a thousand, too.

step-000.safetensors is the first step, step-1000.safetensors the thousand and first; step-000-1.safetensors is what the
second branch of guidance was called with at the first step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

NAME = re.compile(r"step-(\d{3,})(?:-(\d+))?\.safetensors")


class StepFile(NamedTuple):
    """One file of a step; in the order of steps, then of branches."""

    position: int
    branch: int
    path: Path


def step_file(folder: Path, position: int, branch: int = 0) -> Path:
    """The file of a step, and of a branch of it."""
    return folder / (f"step-{position:03d}" + (f"-{branch}" if branch else "") + ".safetensors")


def step_files(folder: Path) -> list[StepFile]:
    """Every file of a step in a folder, in order; none where there is no such folder."""
    names = ((NAME.fullmatch(file.name), file) for file in folder.glob("step-*.safetensors"))
    return sorted(StepFile(int(name[1]), int(name[2] or 0), file) for name, file in names if name)
