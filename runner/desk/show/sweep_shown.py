"""What is said of a sweep on the terminal: its jobs before they start, and how they ended."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.config.faults import spell
from runner.desk.show.terminal import terminal
from runner.store.status import read_status

if TYPE_CHECKING:
    from runner.desk.run.job import Job, Member  # points up: a type alone

STYLES = {"done": "", "refused": "red", "failed": "red"}


def varied(members: Sequence[Member]) -> list[str]:
    """The keys by which the combinations differ."""
    told = [one.sets for one in members]
    return [key for key in told[0] if any(other.get(key) != told[0][key] for other in told[1:])]


def told(one: Member, keys: Sequence[str]) -> str:
    """A combination in a line: what it sets of `keys`."""
    return shlex.join(f"{key}={spell(one.sets[key])}" for key in keys) or "the only one"


def show_jobs(members: Sequence[Member], keys: Sequence[str]) -> None:
    """A line a job: which stages it runs, and which it takes from the store or from a job before it."""
    rows = []
    for one in members:
        if one.job and not one.refused:
            rows.append((one, [_stages(one.job, "run"), _stages(one.job, "reuse"), _forwards(one.job)], ""))
        else:
            rows.append((one, ["refused" if one.refused else "is checked where it runs", "", ""], "yellow"))
    _table(rows, keys, ("runs", "reuses", "forwards"))


def show_outcome(members: Sequence[Member], keys: Sequence[str]) -> None:
    """A line a job: how it ended, and the cause where it has no result."""
    rows = []
    for one in members:
        status = read_status(one.folder)
        state = "refused" if one.refused else str(status.get("state") or "not started")
        cause = str(one.refused or (status.get("error") if state != "done" else "") or "")
        seconds = f"{status['seconds']:.1f} s" if "seconds" in status else ""
        rows.append((one, [state, seconds, cause], STYLES.get(state, "yellow")))
    _table(rows, keys, ("", "time", "cause"))


def _table(rows: Sequence[tuple[Member, list[str], str]], keys: Sequence[str], columns: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("job", justify="right")
    for name in (*keys, *columns):
        table.add_column(name, overflow="fold")
    for one, cells, style in rows:
        values = (spell(one.sets[key]) if key in one.sets else "" for key in keys)
        table.add_row(str(one.number), *(Text(cell) for cell in (*values, *cells)), style=style)
    terminal().print(table)


def _stages(job: Job, action: str) -> str:
    return ", ".join(stage.stage for stage in job.planned if stage.action == action)


def _forwards(job: Job) -> str:
    runs = [stage for stage in job.planned if stage.action == "run"]
    count = sum(stage.forwards for stage in runs)
    return f"{'≤ ' if any(stage.at_most for stage in runs) else ''}{count:,}" if count else ""
