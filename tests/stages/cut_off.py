"""A run that has been made is made again in another store, cut off in the middle, and followed on, in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crash_runs import entries
from rich.console import Console
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from runner import worker
from runner.bench.context import Bench
from runner.store import delivery
from runner.store.artifacts import Store


@contextmanager
def calls(of: type[nn.Module], at_most: int | None = None) -> Iterator[list[None]]:
    """One item for each call of a model of this class; the call after `at_most` fails."""
    made: list[None] = []

    def count(module: nn.Module, _: object) -> None:
        if isinstance(module, of):
            if len(made) == at_most:
                raise RuntimeError("cut off")
            made.append(None)

    hook = register_module_forward_pre_hook(count)
    try:
        yield made
    finally:
        hook.remove()


class Again:
    """The run in the folder `done`, to be followed once more with a store below `output` that lacks `stage`. How many
    of its calls of the model the plan counts is in `planned`."""

    def __init__(self, done: Path, output: Path, stage: str) -> None:
        plan = json.loads((done / "plan.json").read_text())
        self.undisturbed, self.output = Path(plan["store"]).parent, output
        (row,) = (row for row in plan["stages"] if row["stage"] == stage)
        self.planned, self.name = row["forwards"], f"{row['does']}-{row['key']}"
        for planned in plan["stages"]:
            name = f"{planned['does']}-{planned['key']}"
            if (self.undisturbed / ".store" / name).exists() and planned is not row:
                shutil.copytree(self.undisturbed / ".store" / name, output / ".store" / name)
        self.store = Store(output / ".store")
        self.run = output / "run"
        self.run.mkdir(parents=True)
        shutil.copy(done / "run.json", self.run)
        (self.run / "plan.json").write_text(json.dumps({**plan, "store": str(self.store.root)}))

    def follow(self) -> bool:
        """Whether it came through, as a new process does it."""
        with delivery.logged(self.run):
            return worker.attempt(self.run, Bench(), Console(quiet=True))

    def is_as_undisturbed(self) -> bool:
        """Whether what the stage has stored is, byte for byte, what it stored in the run that was not disturbed, and
        nothing is left beside it."""
        drafts = list((self.store.root / "drafts").iterdir())
        return not drafts and entries(self.output)[self.name] == entries(self.undisturbed)[self.name]
