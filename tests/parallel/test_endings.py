"""Two ranks that are killed, fail, are interrupted, or are started by hand. Linux, where /proc says who is alive."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.short_runs import command, environment, results, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc who is alive"),
]

LONG = ["parallel=cfg2", "model.dtype=fp32", "sampler.num_sampling_steps=60"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, by id: the rank of each, "" of what is none."""
    found, wanted = {}, [pid]
    while wanted:
        parent = wanted.pop()
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found[int(child)] = next((v[5:].decode() for v in variables if v.startswith(b"RANK=")), "")
            wanted.append(int(child))
    return found


@contextmanager
def under_way(checkpoint: Path, output: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A desk whose two ranks are generating together, and its run folder."""
    desk = subprocess.Popen(
        command(checkpoint, output, *LONG),
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 400
        while "on rank 1" not in "".join(log.read_text() for log in output.glob("*/*/run.log")):
            assert desk.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        (folder,) = (output / "osp12_w8a8").iterdir()
        yield desk, folder
    finally:
        desk.kill()
        desk.communicate()


def end(desk: subprocess.Popen[str], processes: list[int], within: float) -> tuple[int, str]:
    """Exit status and last words of a desk that must end, with all that is below it, in so many seconds; on a machine
    that is busy with other work in six times as many."""
    within *= 6 if os.getloadavg()[0] > 2 * (os.cpu_count() or 1) else 1
    deadline = time.monotonic() + within
    _, errors = desk.communicate(timeout=within)
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.05)
    return desk.returncode, errors


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_is_killed_ends_the_run_which_then_goes_on(tiny_checkpoint, tmp_path, rank):
    with under_way(tiny_checkpoint, tmp_path / "two") as (desk, folder):
        below = descendants(desk.pid)
        os.kill(next(pid for pid, number in below.items() if number == rank), signal.SIGKILL)
        status, errors = end(desk, list(below), within=10)
    assert status == 1 and len(errors.splitlines()) == 3
    assert f"rank {rank} was ended by SIGKILL" in errors and "failed: stage dump" in errors
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    (tmp_path / "two" / "osp12_w8a8").rename(tmp_path / "disturbed")
    again = run(tiny_checkpoint, tmp_path / "two", *LONG)
    alone = run(tiny_checkpoint, tmp_path / "one", *LONG[1:], "sampler.guidance_batch=separate")
    assert results(again) == results(alone)


def test_a_rank_that_fails_says_why(tiny_checkpoint, tmp_path):
    """It is rank 1 that cannot go on, after it has begun: rank 0 can only see that it is gone."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from runner.hardware import mesh\n"
        "    def send(message, to):\n"
        "        raise ValueError('the other half is lost')\n"
        "    mesh.send = send\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        command(tiny_checkpoint, tmp_path / "out", *LONG),
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    (folder,) = (tmp_path / "out" / "osp12_w8a8").iterdir()
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines() == [
        "failed: stage dump",
        "   why: rank 1: ValueError: the other half is lost",
        f" where: {folder / 'traceback.txt'}",
    ]
    trace = (folder / "traceback.txt").read_text()
    assert "in serve" in trace and trace.endswith("ValueError: the other half is lost\n")


def test_a_rank_that_hangs_is_given_up(tiny_checkpoint, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    from datetime import timedelta\n"
        "    from runner.hardware import mesh\n"
        "    mesh.ANSWER = timedelta(seconds=6)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    with under_way(tiny_checkpoint, tmp_path / "out", PYTHONPATH=path) as (desk, folder):
        below = descendants(desk.pid)
        os.kill(next(pid for pid, number in below.items() if number == "1"), signal.SIGSTOP)
        # torch's launcher asks it to end, which it cannot hear, and half a minute later makes it.
        status, errors = end(desk, list(below), within=90)
    assert status == 1 and "why: rank 1 hangs: no answer for 0.1 minutes" in errors, errors
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_end_with_the_desk(tiny_checkpoint, tmp_path, number):
    with under_way(tiny_checkpoint, tmp_path) as (desk, folder):
        below = list(descendants(desk.pid))
        assert len(below) == 3
        desk.send_signal(number)
        status, errors = end(desk, below, within=5)
    if number == signal.SIGINT:
        assert status == 130 and errors == "interrupted\n"
        assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


def test_the_lines_that_are_printed_do_it(tiny_checkpoint, tmp_path):
    """Two machines, which are one here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["parallel=cfg2", "parallel.nodes=2", "parallel.master_addr=127.0.0.1", f"parallel.master_port={port}"]
    folder = run(tiny_checkpoint, tmp_path / "two", *where, "launch=print", "model.dtype=fp32")
    lines = (folder / "terminal.txt").read_text().splitlines()[-2:]
    assert not (folder / "status.json").exists() and "--node-rank=0" in lines[0] and "--node-rank=1" in lines[1]
    started = [
        subprocess.Popen([sys.executable, *shlex.split(line)[1:]], env=environment(), stderr=subprocess.PIPE)
        for line in lines
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    alone = run(tiny_checkpoint, tmp_path / "one", "sampler.guidance_batch=separate", "model.dtype=fp32")
    assert results(folder) == results(alone)
