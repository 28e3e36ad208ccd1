"""One file a device: what the bench asks of the hardware that is not plain torch; and how several
processes meet (mesh). Importing this room imports no torch."""

from __future__ import annotations

import importlib
from typing import Protocol, cast


class Hardware(Protocol):
    """A device module: runner.hardware.<name>."""

    DEVICE: str

    def available(self) -> str | None:
        """None if the device can be used, else the reason why not."""

    def choose(self, index: int) -> None:
        """Have this process use that device of its machine; counted on from the first where there are fewer."""

    def synchronize(self) -> None:
        """Wait until all work launched so far is done."""

    def clock(self) -> float:
        """Seconds of work, all launched work done: of the processor time of this process, or of the wall."""

    def reset_peak_memory(self) -> None:
        """Forget the peak so far; release what the allocator holds unused."""

    def peak_memory(self) -> int:
        """Highest memory in use since the last reset, bytes."""

    def describe(self) -> dict[str, str | int]:
        """Name and size of the device, for measurements and provenance."""


def open_device(name: str) -> Hardware:
    """The module for device `name`; RuntimeError with the reason where it cannot be used."""
    module = cast(Hardware, importlib.import_module(f"runner.hardware.{name}"))
    if reason := module.available():
        raise RuntimeError(f"hardware={name}: {reason}")
    return module


class PeerLost(ConnectionError):
    """Another process of the run is gone, or has not answered in time. Why it went is for that process, or for who
    started it, to say."""

    def __init__(self, rank: int, hangs: str = "") -> None:
        super().__init__(f"rank {rank} {hangs or 'is gone'}")
        self.rank, self.hangs = rank, bool(hangs)
