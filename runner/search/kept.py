"""The trials of a search, or what a benchmark has timed, kept as they end: who is cut off goes on with them and loses
one at most. A commit leaves them out.

A trial's latents are a function of what was asked; its seconds, if it has any, are not. Where this machine has measured
the same trial before, in a search that was finished, those seconds are taken: equal measurements give equal answers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.store.durable import TRIALS, finish, unfinished

NAME = "trial.json"
Found = tuple[dict[str, Any], dict[str, Tensor]]  # JSON, of which "seconds" were measured, and tensors by name


class Kept:
    """Trials in the order in which they are asked for, each a part of the draft. `measured` are those of an
    earlier search, as `measurements` gave them."""

    def __init__(self, draft: Path, measured: Sequence[Mapping[str, Any]] = ()) -> None:
        self.folder, self.measured = draft / TRIALS, measured
        self.found: list[dict[str, Any]] = []
        self.measurements: list[dict[str, Any]] = []

    def get(self, asked: Mapping[str, Any], make: Callable[[], Found]) -> Found:
        """What `make` finds for `asked` (JSON), or found for it before this stage was cut off."""
        place = len(self.found)
        part = self.folder / f"{place:04d}"
        try:
            content = json.loads((part / NAME).read_text(encoding="utf-8"))
            tensors = load_file(part / "tensors.safetensors")
        except FileNotFoundError:
            content = {}
        if content.get("asked") != asked:
            shutil.rmtree(part, ignore_errors=True)
            found, tensors = make()
            content = {"asked": dict(asked), "found": self._as_before(place, asked, found)}
            half = unfinished(part)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, half / "tensors.safetensors")
            (half / NAME).write_text(json.dumps(content), encoding="utf-8")
            finish(part)
        self.found.append(content["found"])
        self.measurements.append({"asked": content["asked"], "seconds": content["found"].get("seconds")})
        return content["found"], tensors

    def _as_before(self, place: int, asked: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        before = self.measured[place] if place < len(self.measured) else {}
        return found | {"seconds": before["seconds"]} if before.get("asked") == asked else found
