"""A sweep: `-m` with several values of any keys, one job for each combination.

All jobs are composed, checked and planned before any starts. Then they run one after another, a worker serving all that
share a model, or where `hydra/launcher` says. A job that is refused or fails leaves the others. The sweep's folder has
sweep.json (which jobs), a folder for each job, and report.html, written anew whenever a job ends.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.desk.faults import Refused, spell
from runner.desk.fingerprints import write_whole
from runner.desk.job import Job, Member, claim, discard_if_empty, follow, leave_failure, member, prepare
from runner.desk.launch import RunFailed, launch_in_turn, worker_key
from runner.desk.report import write
from runner.desk.report.command import write_sweep
from runner.desk.report.compare import SWEEP
from runner.status import FINAL, read_status, write_status

if TYPE_CHECKING:
    from omegaconf import DictConfig

DONE, FAILED, REFUSED = 0, 1, 2  # exit statuses
ENDED = (*FINAL, "interrupted")  # states of a job that is over
MADE_BY = "made by job"
LOOK = 0.5  # seconds between two looks at how far the jobs are


def run(members: Sequence[Member], command: Sequence[str], elsewhere: Callable[[Path], None] | None = None) -> int:
    """Check all, tell every fault, then run what may run; the exit status.

    `elsewhere`: given the sweep's folder, has the launcher that was asked for call `run_elsewhere` on each combination
    and comes back when all have ended.
    """
    _tidy(members[0].folder.parent, members)
    for one in members:
        try:
            one.job = prepare(one.composed, one.overrides)
        except Refused as refused:
            one.refused = refused
    if elsewhere:  # the machine that it goes to may have what this one has not
        for one in members:
            if one.refused and all(fault.key == "hardware.device" for fault in one.refused.faults):
                one.refused = None
    varied = _varied(members)
    for one in members:
        if one.refused:
            print(f"refused: job {one.number} ({_told(one, varied)}): {one.refused}", file=sys.stderr)
    status = REFUSED if any(one.refused for one in members) else DONE
    jobs = [one.job for one in members if one.job]
    if any(job.config["show"] or job.config["launch"] for job in jobs):
        for one in members:
            if one.job:
                print(f"job {one.number}  {_told(one, varied)}")
                follow(one.job, one.folder)
        return status
    if all(one.refused for one in members):
        return status
    root = _claim(members, command)
    print(f"sweep    {root}, {len(members)} jobs")
    try:
        if elsewhere:
            with _watched(root, members):
                elsewhere(root)
        else:
            _here(root, members)
    finally:
        _tidy(root, members)
        _pages(root, members)
        _show(members, varied)
        print(f"page     {root / 'report.html'}")
    ended = all(read_status(one.folder).get("state") == "done" for one in members if not one.refused)
    return status if ended else FAILED


def run_elsewhere(composed: DictConfig) -> None:
    """Run one combination in the process that a launcher started for it. Raises nothing: how it ended is in its folder,
    and an exception would keep the launcher from the others."""
    os.environ.pop("HYDRA_FULL_ERROR", None)  # which the door has set for itself
    one = member(composed)
    if (one.folder / "status.json").exists():  # refused before the launcher was asked
        return
    try:
        follow(prepare(composed, one.overrides), one.folder, claimed=True)
    except Refused as refused:
        _leave_refused(replace(one, refused=refused))
        print(f"refused: {refused}", file=sys.stderr)
    except RunFailed as failed:
        print(failed, file=sys.stderr)
    except Exception as error:  # of this half, with no worker to say it
        print(leave_failure(one.folder, error), file=sys.stderr)


def _here(root: Path, members: Sequence[Member]) -> None:
    """Run the jobs one after another, each worker serving those that share a model."""
    jobs = [one for one in members if one.job and not one.refused]
    for one, job in zip(jobs, share([(one.number, one.job) for one in jobs if one.job]), strict=True):
        one.job = job
        one.folder.mkdir(parents=True, exist_ok=True)
        job.write(one.folder)
    groups: dict[str, list[Member]] = {}
    for one in jobs:
        assert one.job
        groups.setdefault(_worker(one.job), []).append(one)
    with _watched(root, members):
        for group in groups.values():
            _work(group)


def _work(group: Sequence[Member]) -> None:
    """Run jobs that one worker can serve."""
    jobs = [one.job for one in group if one.job]
    for failed in launch_in_turn([one.folder for one in group], jobs[0].config).values():
        print(failed, file=sys.stderr)


def share(jobs: Sequence[tuple[int, Job]]) -> list[Job]:
    """The jobs' plans where each knows of those before it: what an earlier one makes is reused."""
    makes: dict[tuple[str, str], int] = {}
    shared = []
    for number, job in jobs:
        planned = []
        for stage in job.planned:
            if stage.action == "run" and (maker := makes.setdefault((stage.does, stage.key), number)) != number:
                stage = replace(stage, action="reuse", reason=f"{MADE_BY} {maker}")
            planned.append(stage)
        shared.append(replace(job, planned=planned))
    return shared


def _worker(job: Job) -> str:
    """What jobs must have in common to be served by one worker; where all is stored, no model is loaded at all."""
    if any(stage.action == "run" or stage.reason.startswith(MADE_BY) for stage in job.planned):
        return worker_key(job.config)
    return json.dumps([job.config[section] for section in ("hardware", "parallel")], sort_keys=True)


def _claim(members: Sequence[Member], command: Sequence[str]) -> Path:
    """A folder that is this sweep's alone, with sweep.json and what is known of the jobs that are refused."""
    root = claim(members[0].folder.parent, SWEEP)
    names = {one.job.config["name"] for one in members if one.job}
    told = {
        "name": ", ".join(sorted(names)),
        "command": ["python", "-m", "runner", *command],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "jobs": [one.folder.name for one in members],
    }
    for one in members:
        one.folder = root / one.folder.name
        if one.refused:
            _leave_refused(one)
    write_whole(root / SWEEP, json.dumps(told, indent=2, ensure_ascii=False))
    return root


def _tidy(root: Path, members: Sequence[Member]) -> None:
    """Without what Hydra leaves: its own account of the sweep, and empty folders."""
    (root / "multirun.yaml").unlink(missing_ok=True)
    for one in members:
        discard_if_empty(one.folder)


def _leave_refused(one: Member) -> None:
    """A folder that says what was refused and why."""
    config: dict[str, Any] = {}
    for key, value in one.sets.items():
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    described = {"name": f"job {one.number}", "command": [], "config": config}
    write_whole(one.folder / "run.json", json.dumps(described, indent=2, ensure_ascii=False))
    write_status(one.folder, "refused", error=str(one.refused))


@contextmanager
def _watched(root: Path, members: Sequence[Member]) -> Iterator[None]:
    """Meanwhile, write a job's page and the sweep's whenever a job ends: a long sweep can be looked at."""
    over = threading.Event()

    def watch() -> None:
        ended = 0
        while not over.wait(LOOK):
            now = sum(read_status(one.folder).get("state") in ENDED for one in members)
            if now != ended:
                _pages(root, members)
            ended = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _pages(root: Path, members: Sequence[Member]) -> None:
    """The page of each job that has none yet although it ended, and the sweep's."""
    for one in members:
        page = one.folder / "report.html"
        if one.folder.is_dir() and read_status(one.folder).get("state") in ENDED and not page.exists():
            write(one.folder)
    write_sweep(root)


def _show(members: Sequence[Member], varied: Sequence[str]) -> None:
    """The table at the end: a line a job, and the cause where it has no result."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("job", justify="right")
    for name in (*varied, "", "time", "cause"):
        table.add_column(name, overflow="fold")
    for one in members:
        told = read_status(one.folder)
        state = "refused" if one.refused else str(told.get("state") or "not started")
        cause = str(one.refused or (told.get("error") if state != "done" else "") or "")
        seconds = f"{told['seconds']:.1f} s" if "seconds" in told else ""
        style = {"done": "", "refused": "red", "failed": "red"}.get(state, "yellow")
        values = (spell(one.sets.get(key)) if key in one.sets else "" for key in varied)
        table.add_row(str(one.number), *values, state, seconds, cause, style=style)
    console.print(table)


def _varied(members: Sequence[Member]) -> list[str]:
    """The keys by which the combinations differ."""
    told: list[Mapping[str, Any]] = [one.sets for one in members]
    return [key for key in told[0] if any(other.get(key) != told[0][key] for other in told[1:])]


def _told(one: Member, varied: Sequence[str]) -> str:
    return shlex.join(f"{key}={spell(one.sets[key])}" for key in varied) or "the only one"
