"""A sweep: `-m` with several values of any keys, one job for each combination.

All jobs are composed, checked and planned before any starts. Then they run one after another, a worker serving all that
share a model, or where `hydra/launcher` says. A job that is refused or fails leaves the others. The sweep's folder has
sweep.json (which jobs), a folder for each job, and report.html, written anew whenever a job ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.faults import Refused
from runner.desk.plan.needs import short_of_disk
from runner.desk.report import write
from runner.desk.report.command import write_sweep
from runner.desk.report.compare import SWEEP
from runner.desk.run.job import Job, Member, claim, discard_if_empty, failed_here, follow, member, prepare, try_page
from runner.desk.run.launch import RunFailed, launch_in_turn, worker_key
from runner.desk.show.sweep_shown import show_jobs, show_outcome, told, varied
from runner.store.durable import write_json
from runner.store.status import DONE, FAILED, FINAL, REFUSED, read_status, write_status

if TYPE_CHECKING:
    from omegaconf import DictConfig

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
    keys = varied(members)
    for one in members:
        if one.refused:
            print(f"refused: job {one.number} ({told(one, keys)}): {one.refused}", file=sys.stderr)
    status = REFUSED if any(one.refused for one in members) else DONE
    runnable = [one for one in members if not one.refused]
    share(runnable)
    if any(one.job.config["show"] or one.job.config["launch"] for one in runnable if one.job):
        for one in runnable:
            if one.job:
                print(f"job {one.number}  {told(one, keys)}")
                follow(one.job, one.folder)
        return status
    if not runnable:
        return status
    jobs = [one.job for one in runnable if one.job]
    if jobs and (short := short_of_disk((row for job in jobs for row in job.planned), jobs[0].store)):
        raise Refused([short])
    root = _claim(members, command)
    print(f"sweep    {root}, {len(members)} jobs")
    show_jobs(members, keys)
    try:
        with _watched(root, members):
            if elsewhere:
                elsewhere(root)
            else:
                _here(runnable)
    except Exception as error:  # no job's failure: those are in their folders
        print(failed_here(root, "the launcher" if elsewhere else "the sweep", error), file=sys.stderr)
    finally:
        _tidy(root, members)
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):  # no time for a page of each
            try_page(write_sweep, root)
        else:
            _close(runnable)
            _pages(root, members)
        show_outcome(members, keys)
        print(f"page     {root / 'report.html'}")
    return status if all(read_status(one.folder).get("state") == "done" for one in runnable) else FAILED


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
        one.refused = refused
        _leave_refused(one)
        print(f"refused: {refused}", file=sys.stderr)
    except RunFailed as failed:
        print(failed, file=sys.stderr)
    except Exception as error:  # of this half, with no worker to say it
        print(failed_here(one.folder, "the desk", error), file=sys.stderr)


def _here(members: Sequence[Member]) -> None:
    """Run the jobs one after another, each worker serving those that share a model."""
    groups: dict[str, list[tuple[Path, Job]]] = {}
    for one in members:
        assert one.job
        one.folder.mkdir(parents=True, exist_ok=True)
        one.job.write(one.folder)
        groups.setdefault(_worker(one.job), []).append((one.folder, one.job))
    for group in groups.values():
        for failed in launch_in_turn([folder for folder, _ in group], group[0][1].config).values():
            print(failed, file=sys.stderr)


def share(members: Sequence[Member]) -> None:
    """Have the plan of each job know of those before it: what an earlier one makes is reused."""
    makes: dict[tuple[str, str], int] = {}
    for one in members:
        planned = []
        for stage in one.job.planned if one.job else ():
            if stage.action == "run" and (maker := makes.setdefault((stage.does, stage.key), one.number)) != one.number:
                stage = replace(stage, action="reuse", reason=f"{MADE_BY} {maker}")
            planned.append(stage)
        one.job = one.job and replace(one.job, planned=planned)


def _worker(job: Job) -> str:
    """What jobs must have in common to be served by one worker; where all is stored, no model is loaded at all."""
    if any(stage.action == "run" or stage.reason.startswith(MADE_BY) for stage in job.planned):
        return worker_key(job.config)
    return json.dumps([job.config[section] for section in ("hardware", "parallel")], sort_keys=True)


def _claim(members: Sequence[Member], command: Sequence[str]) -> Path:
    """A folder that is this sweep's alone, with sweep.json and what is known of the jobs that are refused."""
    root = claim(members[0].folder.parent, SWEEP)
    names = {one.job.config["name"] for one in members if one.job}
    described = {
        "name": ", ".join(sorted(names)),
        "command": ["python", "-m", "runner", *command],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "jobs": [one.folder.name for one in members],
    }
    for one in members:
        one.folder = root / one.folder.name
        if one.refused:
            _leave_refused(one)
    write_json(root / SWEEP, described)
    return root


def _tidy(root: Path, members: Sequence[Member]) -> None:
    """Without what Hydra leaves: its own account of the sweep, and empty folders."""
    (root / "multirun.yaml").unlink(missing_ok=True)
    for one in members:
        discard_if_empty(one.folder)


def _close(members: Sequence[Member]) -> None:
    """Say of the jobs that their processes left without a word that this is how they ended."""
    for one in members:
        if (status := read_status(one.folder)).get("state") == "running":
            write_status(one.folder, **{**status, "state": "failed", "error": "its process ended without a word"})


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
    write_json(one.folder / "run.json", described)
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
                _pages(root, members, over)
            ended = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _pages(root: Path, members: Sequence[Member], over: threading.Event | None = None) -> None:
    """The page of each job that has none yet although it ended, and the sweep's; no more of them once it is `over`."""
    for one in members:
        if over and over.is_set():
            return
        page = one.folder / "report.html"
        if one.folder.is_dir() and read_status(one.folder).get("state") in ENDED and not page.exists():
            try_page(write, one.folder)
    try_page(write_sweep, root)
