"""A worker, or a desk, that is hit at every rename and fsync it does, one after another: run by tests/test_crash.py.

    python tests/crash_tries.py kill|fail REFERENCE STORE worker RUN
    python tests/crash_tries.py kill|fail REFERENCE STORE desk ARGUMENT...

REFERENCE is the store of an undisturbed run, STORE the one to work in; RUN a folder with run.json and plan.json as the
desk wrote them; the ARGUMENTs are the front door's. What takes long to load is loaded once; each try is a fork that is
hit at the first operation that no try before it was hit at: killed (SIGKILL) just before it, or the operation raises
EIO. After each try, whatever stands in the store under its final name is compared with the reference, byte for byte.
Prints one JSON object.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from runner.store.artifacts import MANIFEST, Store

HIT = ("rename", "replace", "fsync")
Operation = tuple[str, str, str]  # what, on which path, in which stage ("": before the first, or in the desk)


def name_of(path: str | Path) -> str:
    """A path without what differs between two tries: the run's number or date, process ids, times."""
    return re.sub(r"run-\d+|\d{4}-\d\d-\d\d_[-\d]+|(?<=\.)\d{2,}|-\d{15,}", "*", str(path))


def hit_at_the_first_new(known: set[Operation], tell: int, how: str, stage: Callable[[], str]) -> None:
    """Wrap what is to be hit, once; the operation that the process is hit at is written to `tell`."""
    hits: list[Operation] = []

    def wrap(name: str) -> None:
        function = getattr(os, name)

        def call(*arguments: object) -> object:
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[1])
            operation = (name, name_of(target), stage())
            if not hits and operation not in known:
                hits.append(operation)
                os.write(tell, json.dumps(operation).encode())
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.EIO, os.strerror(errno.EIO), target)
            return function(*arguments)

        setattr(os, name, call)

    for name in HIT:
        wrap(name)


def attempt(follow: Callable[[], int], known: set[Operation], how: str, stage: Callable[[], str]) -> tuple[str, int]:
    """One try in a process of its own: what it was hit at (as JSON, "": it came through), and how it ended."""
    read, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            hit_at_the_first_new(known, tell, how, stage)
            status = follow()
        finally:
            os._exit(status)
    os.close(tell)
    with open(read) as pipe:
        told = pipe.read()
    return told, os.waitpid(pid, 0)[1]


def artifacts(store: Path) -> list[Path]:
    return [folder for folder in store.iterdir() if (folder / MANIFEST).is_file()]


def check(store: Path, reference: Path) -> None:
    """Whatever has its final name is as it is in the undisturbed run's store."""
    for made in artifacts(reference):
        if (entry := store / made.name).exists():
            assert (entry / MANIFEST).read_bytes() == (made / MANIFEST).read_bytes(), f"{entry} differs"
            stage, _, key = made.name.rpartition("-")
            assert Store(store).find(stage, key, thorough=True), f"{entry} is damaged"
        for part in store.glob(f"drafts/{made.name}/prompt-???"):
            for file in (path for path in (made / part.name).rglob("*") if path.is_file()):
                copy = part / file.relative_to(made / part.name)
                assert copy.read_bytes() == file.read_bytes(), f"{part} is not whole"


def worker(folder: Path, store: Path) -> Callable[[int], tuple[Callable[[], int], Callable[[], str]]]:
    """For each try's number: what follows a copy of the run folder, and what tells its stage."""
    import torch
    from rich.console import Console

    from runner import worker
    from runner.bench.context import Bench
    from runner.stages import calibrate, dump, quantize, sample  # noqa: F401
    from runner.store import delivery
    from runner.store.status import read_status

    torch.set_num_threads(1)
    plan = json.loads((folder / "plan.json").read_text()) | {"store": str(store)}
    bench = Bench()
    bench.pipeline(json.loads((folder / "run.json").read_text())["config"])

    def prepare(number: int) -> tuple[Callable[[], int], Callable[[], str]]:
        run = folder.parent / f"run-{number}"
        run.mkdir()
        shutil.copy(folder / "run.json", run)
        (run / "plan.json").write_text(json.dumps(plan))

        def follow() -> int:
            with delivery.logged(run):
                return 0 if worker.attempt(run, bench, Console()) else 1

        return follow, lambda: read_status(run).get("stage", "")

    return prepare


def desk(arguments: list[str]) -> Callable[[int], tuple[Callable[[], int], Callable[[], str]]]:
    """For each try's number: what the front door does with the arguments."""
    from runner.__main__ import door
    from runner.desk import report  # noqa: F401
    from runner.desk.run import job, launch  # noqa: F401
    from runner.desk.show import terminal  # noqa: F401

    sys.argv[1:] = arguments
    return lambda number: (lambda: door(arguments), lambda: "")


def main(how: str, reference: Path, store: Path, who: str, arguments: list[str]) -> None:
    prepare = worker(Path(arguments[0]).resolve(), store) if who == "worker" else desk(arguments)
    known: set[Operation] = set()
    for number in count():
        parts = {path: path.stat().st_ino for path in store.glob("drafts/*/prompt-???")}
        follow, stage = prepare(number)
        told, status = attempt(follow, known, how, stage)
        check(store, reference)
        for path, inode in parts.items():  # what was finished is not made again
            now = path if path.exists() else store / path.parent.name / path.name
            assert now.stat().st_ino == inode, f"{path} was lost"
        if not told:
            assert status == 0, status
            break
        what, where, when = json.loads(told)
        assert how == "fail" or os.WIFSIGNALED(status), told
        known.add((what, where, when))
    left = [str(path.relative_to(store)) for name in ("drafts", "damaged") for path in store.glob(f"{name}/*")]
    made = sorted(folder.name for folder in artifacts(store))
    print(json.dumps({"hits": sorted(known), "left": left, "made": made}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve(), sys.argv[4], sys.argv[5:])
