"""The questions that every technique answers, with the answers of one that has nothing to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from runner.page.pieces import Figure, Row, Section, Value
from runner.page.run import Run


class Rows:
    """What pages, tables and the terminal say of a technique: `rows.Rows` of its room.

    Configurations and measurements are JSON as a run folder has them, from any earlier version, too.
    """

    changes_call: ClassVar[bool] = False  # whether a single call of the transformer computes something else
    figures: ClassVar[tuple[Figure, ...]] = ()  # that runs are compared by

    def name(self, config: Mapping[str, Any]) -> str | None:
        """What a run of this configuration does by it ("W8A8"); None where it does nothing."""
        return None

    def claim(self, run: Run) -> str:
        """What it won, as a part of the sentence at the head of the page; empty where nothing was measured."""
        return ""

    def highlights(self, run: Run) -> Iterator[tuple[str, Value]]:
        """The few figures at the head of the page: (what, value)."""
        yield from ()

    def predicted(self, run: Run) -> Iterator[Row]:
        """Rows of the ledger by arithmetic: FLOPs, sizes."""
        yield from ()

    def measured(self, run: Run) -> Iterator[Row]:
        """Rows of the ledger that were measured: speed, memory."""
        yield from ()

    def sections(self, run: Run) -> Iterator[Section]:
        """Its own parts of the page."""
        yield from ()
