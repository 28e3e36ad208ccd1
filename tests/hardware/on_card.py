"""Runs on a stand-in card, in a process of its own: `python -m hardware.on_card DEVICE`, cases on standard input.

A case is [folder, *arguments of the runner]. Of each it prints, as a line of JSON, the run's folder, the most memory
that it held of the card in bytes, and which parts of the pipeline were there, each time that one was brought.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hardware import vendors
from hardware.card import Card, OnCard


def main(device: str) -> None:
    torch.utils.rename_privateuse1_backend(device)
    vendors.install(device)
    from model.diffusers.in_process import run

    from runner.generation.offload import Offload
    from runner.model import parts

    there: list[list[str]] = []
    bring = Offload.pre_forward

    def noted(self: Offload, *args: Any) -> None:
        bring(self, *args)
        weights = {name: list(part.state_dict().values()) for name, part in parts(self._pipeline).items()}
        there.append([name for name, tensors in weights.items() if any(isinstance(x, OnCard) for x in tensors)])
        assert not any(x.is_inference() for tensors in weights.values() for x in tensors), "they cannot be changed"

    Offload.pre_forward = noted  # type: ignore[method-assign]
    for folder, *arguments in json.load(sys.stdin):
        Path(folder).mkdir(parents=True)
        there.clear()
        with Card(device) as card:
            made, _ = run(Path(folder), f"hardware={device}", *arguments)
        print(json.dumps({"run": str(made), "peak": card.peak, "there": there}))


if __name__ == "__main__":
    main(*sys.argv[1:])
