"""The techniques: what is done to a model, each in a room of its own that answers the same questions.

A technique is a group of conf/config.yaml's defaults, other than model and hardware, and the room of the same name. A
new one is a folder, a YAML and a line in that list. Its files, each only where it has something to say:

    section    its section of the configuration, a class `Section` (those of the house stand in runner/config)
    rules      faults, stages, what it wants of dump, which names it has          no torch
    cost       forwards, bytes, memory                                           no torch
    rows       what a page, a table and the terminal say of it                   no torch
    record     the watchers that dump attaches for it
    calibrate, quantize, search   what its stages do
    apply      what is done to a pipeline: around one generation, or to its transformer

runner.technique.questions has the questions with their types. Stages, desk and pages loop over the techniques and name
none.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from runner.config import recipes
from runner.technique.questions import Rows

ROOMS = ("model", "hardware")  # groups that are no technique: what it is done to, and where


@cache
def names() -> tuple[str, ...]:
    """The techniques, from the one whose choice comes first: what a schedule, then a quantization, then a cache does.

    In conf/config.yaml they stand the other way round, so that the first ones may set keys of the others.
    """
    composed = recipes.parse((recipes.folder("conf") / "config.yaml").read_text(encoding="utf-8"))
    groups = [name for entry in composed["defaults"] if isinstance(entry, dict) for name in entry]
    return tuple(name for name in reversed(groups) if " " not in name and name not in ROOMS)


def module(technique: str, file: str) -> ModuleType | None:
    """A technique's file of this name; None where it has none."""
    name = f"runner.{technique}.{file}"
    return import_module(name) if find_spec(name) else None


@cache
def modules(file: str) -> tuple[tuple[str, ModuleType], ...]:
    """The techniques that have a file of this name, in order, and these files."""
    return tuple((name, found) for name in names() if (found := module(name, file)) is not None)


@cache
def rows() -> tuple[tuple[str, Rows], ...]:
    """What each technique says on pages, by its name, in order."""
    return tuple((name, found.Rows()) for name, found in modules("rows"))
