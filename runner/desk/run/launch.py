"""From run folders to a worker process, and back to at most three lines about each run that failed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from runner.config.faults import Refused
from runner.store import delivery, lifeline, machine
from runner.store.artifacts import Store
from runner.store.status import FINAL, PEER_LOST, STDERR, read_status, write_status

WORKER = "runner.worker"
LAUNCHER = "runner.parallel.launcher"  # takes torchrun's arguments
RANKS = "RUNNER_RANKS"  # the file in which it says how each rank that failed has ended
LONGEST_REASON = 500  # characters of a failure's reason on the terminal; all of it is in status.json
# Threads of one process wait for each other in turns of this many before they sleep. libgomp's own count is 300 times
# as high: alone that saves at most 5 %, and beside another program that keeps a core busy it costs up to a hundredfold.
SPIN = {"GOMP_SPINCOUNT": "1000"}
PATIENCE = (2.5, 0.5)  # seconds to end by itself after SIGINT, then after SIGTERM
ASKED_TO_END = ("SIGINT", "SIGTERM", "SIGHUP")

Config = Mapping[str, Any]


class RunFailed(Exception):
    """A run that was started and did not finish: what failed, why, and where to read on."""

    def __init__(self, what: str, why: str, where: Path) -> None:
        self.what, self.why, self.where = what, why, where
        super().__init__(what, why, where)

    def __str__(self) -> str:
        return f"failed: {self.what}\n   why: {self.why}\n where: {self.where}"


def launch(run: Path, config: Config) -> None:
    """Have a worker follow one run folder until it ends. Its output passes through; its errors go to the folder.

    Being asked to end (Ctrl-C, SIGTERM, a closed terminal) is passed on to it, and after some patience enforced; then
    KeyboardInterrupt is raised. Raises RunFailed if the run fails.
    """
    for failed in launch_in_turn([run], config).values():
        raise failed


def launch_in_turn(runs: Sequence[Path], config: Config) -> dict[Path, RunFailed]:
    """Have one worker follow several run folders in turn, and return those that failed.

    The worker keeps the model that it has loaded. `config` is the configuration of any of the runs, all of which must
    have the same `worker_key`. A run that fails leaves the others alone; one that its worker dies of is followed by the
    others with a new worker. Raises KeyboardInterrupt as `launch` does.
    """
    failures: dict[Path, RunFailed] = {}
    left = list(runs)
    while left:
        try:
            ended = _work(left, config)
        except KeyboardInterrupt:
            for run in left:
                if (told := read_status(run)).get("state") not in FINAL:
                    write_status(run, **{**told, "state": "interrupted"})
                    _tidy(run)
            raise
        told_of = {run: read_status(run) for run in left}
        untold = [run for run in left if told_of[run].get("state") not in FINAL] if ended.status else []
        # It goes through them in order, so the first that it began and said no last word about is the one that it died
        # in; or the first of all, if it never came to begin one.
        died_in = [run for run in untold if told_of[run]][:1] or (left[:1] if untold == left else [])
        for run, told in told_of.items():
            if told.get("state") == "failed" or run in died_in:
                failures[run] = _failure(run, ended)
            if run in died_in or "lost" in told:
                write_status(run, **{**told, "state": "failed", "error": failures[run].why})
            if run in died_in:
                _tidy(run)
        left = [run for run in untold if run not in died_in]
    return failures


def worker_key(config: Config) -> str:
    """What runs must have in common for one worker to follow them: the model, the device, the processes."""
    return json.dumps([config[section] for section in ("model", "hardware", "parallel")], sort_keys=True)


def lines(run: Path, config: Config) -> list[str]:
    """What to type to start a run folder by hand: a line on each of its machines, all of which must see the folder."""
    parallel = config["parallel"]
    settings = [f"{name}={value}" for name, value in config["hardware"]["env"].items()]
    host = parallel["master_addr"] or socket.gethostname()
    commands = []
    for node in range(parallel["nodes"]):
        command = ["python", "-m", WORKER]
        if parallel["world_size"] > 1:
            command = [
                *("python", "-m", "torch.distributed.run", f"--nnodes={parallel['nodes']}", f"--node-rank={node}"),
                f"--nproc-per-node={parallel['world_size'] // parallel['nodes']}",
                *(f"--master-addr={host}", f"--master-port={parallel['master_port']}", "-m", WORKER),
            ]
        commands.append(shlex.join([*(["env", *settings] if settings else []), *command, str(run)]))
    return commands


@dataclass(frozen=True)
class _Ended:
    """The exit status of a worker (negative: the signal that ended it), and of its ranks that failed."""

    status: int
    ranks: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        told = [said for rank in self.ranks if (said := self.of(rank))]
        return told[0] if told else _end_of("the worker", self.status)

    def of(self, rank: object) -> str | None:
        """How a rank ended by itself: not by the launcher, which ends the others by SIGTERM, nor for another's sake."""
        status = self.ranks.get(str(rank), 0)
        return None if status in (0, -signal.SIGTERM, PEER_LOST) else _end_of(f"rank {rank}", status)


def _work(runs: Sequence[Path], config: Config) -> _Ended:
    """Run one worker, of one process or more, on `runs` until it ends; none where all is stored and whole."""
    if not any(map(_works, runs)):
        numbered = enumerate(runs, 1)
        with _interruptible():
            if all(_reuse(run, f"run {number} of {len(runs)}" if len(runs) > 1 else "") for number, run in numbered):
                return _Ended(0)
    ranks = runs[0] / ".ranks.json"
    spin = {} if "OMP_WAIT_POLICY" in os.environ else SPIN  # who exports either knows better
    environment = {**spin, **os.environ, **config["hardware"]["env"], lifeline.TOLD: "stdin", RANKS: str(ranks)}
    environment["WORLD_SIZE"] = "1"  # whatever this process itself is a rank of
    command = [sys.executable, "-m", WORKER, *map(str, runs)]
    if (size := config["parallel"]["world_size"]) > 1 and any(map(_works, runs)):
        # Standalone: they meet at a port that the system picks, so runs at the same time do not meet each other.
        where = [f"--nproc-per-node={size}", "--standalone", "--local-addr=127.0.0.1"]
        command = [sys.executable, "-m", LAUNCHER, *where, "--monitor-interval=0.2", *command[1:]]
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(str(machine.describe()["cores"])) // size)))
    try:
        with (runs[0] / STDERR).open("ab") as errors, _interruptible():
            worker = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,  # never written to: the lifeline, whose end tells that the desk is gone
                stderr=errors,
                start_new_session=True,  # the terminal's Ctrl-C reaches the desk alone, which passes it on exactly once
            )
            try:
                status = worker.wait()
            except KeyboardInterrupt:
                _end(worker)
                raise
        return _Ended(status, json.loads(ranks.read_text()) if ranks.is_file() else {})
    finally:
        ranks.unlink(missing_ok=True)
        for run in runs:
            if (run / STDERR).is_file() and (run / STDERR).stat().st_size == 0:
                (run / STDERR).unlink()


def _reuse(run: Path, title: str) -> bool:
    """Do here what a worker would do in a run folder whose plan only reuses; whether that went well. Where it did not,
    because an artifact is gone or altered since it was planned, or cannot be linked, a worker does all and says why."""
    start = time.perf_counter()
    plan, described = (json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("plan", "run"))
    store, stages = Store(Path(plan["store"])), [row for row in plan["stages"] if row["action"] != "skip"]
    if title:
        print(f"{title}  {run}")
    try:
        with delivery.logged(run):
            for row in stages:
                write_status(run, "running", stage=row["stage"])
                wait = partial(delivery.tell_waiting, row, say=print)
                with store.claim(row["does"], row["key"], str(run), wait, row.get("redo")) as entry:
                    if entry is None:
                        return False
                    store.link(entry, run, row["stage"])
                delivery.deliver(store, row, run, described["config"])
            for row in stages:
                delivery.tell_reused(row, print)
        write_status(run, "done", seconds=time.perf_counter() - start)
    except (OSError, Refused):
        return False
    return True


def _works(run: Path) -> bool:
    """Whether the plan of a run has a stage to run, or cannot be read, as the worker will say."""
    try:
        stages = json.loads((run / "plan.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError):
        return True
    return any(stage["action"] == "run" for stage in stages)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Whatever asks this process to end raises KeyboardInterrupt here; what it ignores (nohup) it goes on to ignore."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ASKED_TO_END if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may say how signals are met
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Ask the worker to stop, then make it: none outlives the desk. Asking again makes the next step come at once."""
    for number, patience in zip((signal.SIGINT, signal.SIGTERM), PATIENCE, strict=True):
        worker.send_signal(number)
        try:
            worker.wait(patience)
            return
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
    worker.kill()
    worker.wait()


def _tidy(run: Path) -> None:
    """Remove from the store what a worker that was killed in this run has left half written."""
    try:
        plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # why the run failed matters more
        return
    for planned in plan["stages"]:
        Store(Path(plan["store"])).tidy(f"{planned['does']}-{planned['key']}")


def _failure(run: Path, ended: _Ended) -> RunFailed:
    """Why a run failed: what its worker said of it, or else how the worker ended."""
    told = read_status(run)
    stage = told.get("stage")
    where = next((run / name for name in ("traceback.txt", STDERR, "run.log") if (run / name).is_file()), run)
    what = f"stage {stage}" if stage else "the worker, before its first stage"
    how = ended.of(told.get("lost"))  # the launcher knows of what a rank died that the others only saw go
    if told.get("state") == "failed" and how is None:
        return RunFailed(what, textwrap.shorten(str(told.get("error")), LONGEST_REASON, placeholder=" ..."), where)
    return RunFailed(what, how or str(ended), where)


def _end_of(who: str, status: int) -> str:
    if status >= 0:
        return f"{who} ended with status {status} and said no more"
    name = signal.Signals(-status).name
    return f"{who} was ended by {name}{' (on Linux often because memory ran out)' if name == 'SIGKILL' else ''}"
