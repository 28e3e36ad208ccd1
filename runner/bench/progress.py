"""Progress of long work: one line a stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Ticker:
    """What a stage advances while it works."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def advance(self, steps: int = 1) -> None:
        self.done += steps


class _Plain(Ticker):
    """Prints a line at each tenth of the work, at most every two seconds."""

    def __init__(self, console: Console, stage: str, total: int) -> None:
        super().__init__(total)
        self._console, self._stage = console, stage
        self._start = self._last = time.perf_counter()
        self._tenth = 0

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        now, tenth = time.perf_counter(), 10 * self.done // max(self.total, 1)
        if tenth > self._tenth and now - self._last > 2 and self.done < self.total:
            self._tenth, self._last = tenth, now
            elapsed = now - self._start
            left = elapsed / self.done * (self.total - self.done)
            self._console.print(
                f"{self._stage:<10} {self.done}/{self.total} steps, {self.done / elapsed:.1f}/s, {left:.0f} s left",
                highlight=False,
            )


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class _Bar(Ticker):
    def __init__(self, bars: Progress, stage: str, total: int) -> None:
        super().__init__(total)
        self._bars, self._task = bars, bars.add_task(stage, total=total)

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        self._bars.advance(self._task, steps)


@contextmanager
def progress(console: Console, stage: str, total: int) -> Iterator[Ticker]:
    """A ticker for `total` steps of `stage`; says how long the stage took when it ends."""
    start = time.perf_counter()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            yield _Bar(bars, stage, total)
    else:
        yield _Plain(console, stage, total)
    console.print(f"{stage:<10} done in {time.perf_counter() - start:.1f} s", highlight=False)
