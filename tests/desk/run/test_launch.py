"""A worker that ends well, badly, or is asked to end. A stand-in of a few lines takes the real one's place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from runner.desk.run import launch
from runner.desk.run.launch import RunFailed
from runner.store.artifacts import Store
from runner.store.status import PEER_LOST, read_status, write_status


def config(env=None):
    return {"hardware": {"env": env or {}}, "parallel": {"world_size": 1}}


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """`worker(code)`: what the worker does instead; `run` is the run folder there and what is returned here."""

    def stand_in(code: str) -> Path:
        (tmp_path / "stand_in.py").write_text(
            f"import json, os, sys, time\nfrom pathlib import Path\nrun = Path(sys.argv[1])\n{textwrap.dedent(code)}"
        )
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(launch.__file__).parents[3])]))
        monkeypatch.setattr(launch, "WORKER", "stand_in")
        run = tmp_path / "run"
        run.mkdir()
        return run

    return stand_in


def test_worker_gets_the_folder_the_environment_and_the_terminal(worker, capfd, monkeypatch):
    monkeypatch.setenv("KEPT", "yes")
    run = worker("print('hello'); (run / 'seen').write_text(os.environ['KEPT'] + os.environ['SET'])")
    launch.launch(run, config({"SET": "too"}))
    assert (run / "seen").read_text() == "yestoo"
    assert capfd.readouterr().out == "hello\n"


def test_failure_that_was_told(worker):
    run = worker("""
        (run / "status.json").write_text(json.dumps({"state": "failed", "stage": "quantize", "error": "ValueError: x"}))
        (run / "traceback.txt").write_text("Traceback")
        sys.exit(1)
    """)
    with pytest.raises(RunFailed) as failed:
        launch.launch(run, config())
    assert str(failed.value).splitlines() == [
        "failed: stage quantize",
        "   why: ValueError: x",
        f" where: {run / 'traceback.txt'}",
    ]


def test_failure_that_was_not(worker):
    run = worker("""
        (run / "status.json").write_text(json.dumps({"state": "running", "stage": "dump"}))
        os.kill(os.getpid(), 9)
    """)
    with pytest.raises(RunFailed, match="SIGKILL .*memory") as failed:
        launch.launch(run, config())
    assert failed.value.what == "stage dump" and failed.value.where == run


def test_failure_before_anything(worker):
    with pytest.raises(RunFailed, match="before its first stage"):
        launch.launch(worker("sys.exit(3)"), config())


def test_why_is_said_in_one_line(worker):
    run = worker("""
        (run / "status.json").write_text(json.dumps({"state": "failed", "stage": "dump", "error": "E: a\\n  b\\n  c"}))
        sys.exit(1)
    """)
    with pytest.raises(RunFailed) as failed:
        launch.launch(run, config())
    assert len(str(failed.value).splitlines()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stubborn", [False, True])
def test_asked_to_end_the_desk_ends_its_worker(worker, tmp_path, number, stubborn):
    run = worker(f"""
        import signal
        if {stubborn}:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (run / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    """)
    desk = (
        "from pathlib import Path; from runner.desk.run import launch\n"
        "launch.WORKER, launch.PATIENCE = 'stand_in', (0.3, 0.3)\n"
        f"try: launch.launch(Path({str(run)!r}), {config()!r})\nexcept KeyboardInterrupt: raise SystemExit(130)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(launch.__file__).parents[3])])
    process = subprocess.Popen(
        [sys.executable, "-c", desk], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    wait_for(run / "pid")
    process.send_signal(number)
    assert process.wait(10) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((run / "pid").read_text()), 0)


def test_asked_to_end_the_run_says_so(worker, monkeypatch):
    run = worker('(run / \'status.json\').write_text(\'{"state": "running", "stage": "dump"}\'); time.sleep(60)')
    monkeypatch.setattr(launch, "PATIENCE", (0.3, 0.3))
    monkeypatch.setattr(launch, "_work", interrupted_when(run / "status.json", launch._work))
    with pytest.raises(KeyboardInterrupt):
        launch.launch(run, config())
    assert read_status(run) == {"state": "interrupted", "stage": "dump"}


def interrupted_when(file, work):
    def wait_and_interrupt():
        wait_for(file)
        os.kill(os.getpid(), signal.SIGINT)

    def interrupted(*arguments):
        threading.Thread(target=wait_and_interrupt).start()
        return work(*arguments)

    return interrupted


IN_TURN = """
    from runner.store.status import write_status
    for run in map(Path, sys.argv[1:]):
        write_status(run, "running", stage="dump", worker=os.getpid())
        if run.name == "dies":
            print("last words", file=sys.stderr)
            sys.stderr.flush()
            os.kill(os.getpid(), 9)
        if run.name in ("fails", "ends"):
            write_status(run, "failed", stage="dump", error="ValueError: x", worker=os.getpid())
            if run.name == "ends":
                os._exit(1)
        else:
            write_status(run, "done", worker=os.getpid())
    sys.exit(1)
"""


def test_one_worker_follows_runs_in_turn_and_a_new_one_what_it_died_before(worker):
    folder = worker(IN_TURN)
    runs = [folder.with_name(name) for name in ("first", "fails", "second", "dies", "third", "ends", "fourth")]
    for run in runs:
        run.mkdir()
    failures = launch.launch_in_turn(runs, config())
    assert {run.name: failed.why.partition(" (")[0] for run, failed in failures.items()} == {
        "fails": "ValueError: x",
        "dies": "the worker was ended by SIGKILL",
        "ends": "ValueError: x",
    }
    states = {run.name: read_status(run)["state"] for run in runs}
    assert states == dict.fromkeys(("first", "second", "third", "fourth"), "done") | dict.fromkeys(
        ("fails", "dies", "ends"), "failed"
    )
    by = [read_status(run)["worker"] for run in runs]
    assert by[0] == by[1] == by[2] == by[3] != by[4] == by[5] != by[6]


def test_what_a_killed_worker_left_half_written_goes(worker, tmp_path):
    run = worker("""
        draft = Path(json.loads((run / "plan.json").read_text())["store"]) / "drafts" / "dump-0"
        for name in ("prompt-000", "prompt-001.part"):
            (draft / name).mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"state": "running", "stage": "dump"}))
        os.kill(os.getpid(), 9)
    """)
    plan = {
        "store": str(tmp_path / ".store"),
        "stages": [{"stage": "dump", "does": "dump", "key": "0", "action": "run"}],
    }
    (run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RunFailed):
        launch.launch(run, config())
    assert [path.name for path in (tmp_path / ".store" / "drafts" / "dump-0").iterdir()] == ["prompt-000"]


def test_what_a_worker_cries_goes_to_the_folder(worker, capfd):
    run = worker("raise RuntimeError('too early to say it well')")
    with pytest.raises(RunFailed) as failed:
        launch.launch(run, config())
    assert failed.value.where == run / "stderr.log"
    assert "RuntimeError: too early" in failed.value.where.read_text()
    assert capfd.readouterr().err == ""


def test_a_worker_that_cries_nothing_leaves_no_empty_file(worker):
    run = worker("pass")
    launch.launch(run, config())
    assert not any(run.iterdir())


def wait_for(file: Path, seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.02)
    return file.read_text()


def test_handlers_are_put_back(worker):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    launch.launch(worker("pass"), config())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def parallel(**more):
    return {"world_size": 2, "nodes": 1, "master_addr": None, "master_port": 29500} | more


def test_the_line_for_one_process():
    found = launch.lines(Path("/runs/a b"), config({"A": "1 2"}) | {"parallel": parallel(world_size=1)})
    assert found == ["env 'A=1 2' python -m runner.worker '/runs/a b'"]


def test_the_lines_for_several_machines():
    found = launch.lines(Path("/runs/a"), config() | {"parallel": parallel(nodes=2, master_addr="first")})
    assert found == [
        f"python -m torch.distributed.run --nnodes=2 --node-rank={node} --nproc-per-node=1 --master-addr=first "
        "--master-port=29500 -m runner.worker /runs/a"
        for node in (0, 1)
    ]


@pytest.mark.parametrize(
    ("status", "ranks", "says"),
    [
        (-9, {}, "the worker was ended by SIGKILL"),
        (3, {}, "the worker ended with status 3"),
        (1, {"0": -15, "1": -9}, "rank 1 was ended by SIGKILL"),  # the launcher has ended rank 0
        (1, {"0": PEER_LOST, "1": -11}, "rank 1 was ended by SIGSEGV"),
        (1, {"0": -15, "1": 3}, "rank 1 ended with status 3"),
    ],
)
def test_the_rank_that_ended_first_is_named(status, ranks, says):
    assert str(launch._Ended(status, ranks)).startswith(says)


@pytest.mark.parametrize(
    ("rank_1", "says"), [(-11, "rank 1 was ended by SIGSEGV"), (-15, "rank 1 is gone"), (0, "rank 1 is gone")]
)
def test_what_one_rank_saw_go_the_launcher_knows_the_end_of(tmp_path, rank_1, says):
    """-15: the launcher ended it, so it did not end by itself."""
    write_status(tmp_path, "failed", stage="dump", error="rank 1 is gone", lost=1)
    failed = launch._failure(tmp_path, launch._Ended(1, {"0": PEER_LOST, "1": rank_1}))
    assert failed.why.startswith(says) and failed.what == "stage dump"


@pytest.fixture
def reused(worker, tmp_path):
    """`reused(code, **config)`: a run folder whose plan reuses one artifact, which is stored, and that artifact."""

    def folder(code: str, **config: object) -> tuple[Path, Path]:
        run, store = worker(code), Store(tmp_path / ".store")
        draft = store.draft("quantize", "k")
        (draft / "quant_model_weight.safetensors").write_text("weights")
        entry = store.commit(draft, "quantize", "k")
        store.write_measurements("quantize", "k", {"seconds": 2})
        row = {"stage": "quantize", "does": "quantize", "key": "k", "action": "reuse", "redo": None}
        plan = {
            "store": str(store.root),
            "stages": [{"stage": "dump", "does": "dump", "key": "", "action": "skip"}, row],
        }
        (run / "plan.json").write_text(json.dumps(plan))
        whole = {**launched(), "quant": {"folder": str(tmp_path / "export")}, **config}
        (run / "run.json").write_text(json.dumps({"config": whole}))
        return run, entry.path

    return folder


def launched() -> dict[str, object]:
    return config() | {"parallel": parallel()}


def test_what_is_all_stored_takes_no_worker(reused, tmp_path, capfd):
    run, entry = reused("(run / 'seen').touch()")
    launch.launch(run, launched())
    assert sorted(file.name for file in run.iterdir()) == [
        *("measurements", "plan.json", "quantize", "run.json", "run.log", "status.json")
    ]
    name = "quant_model_weight.safetensors"
    by_rank = [f"quant_model_weight_{rank}.safetensors" for rank in (0, 1)]
    for place in (run / "quantize", tmp_path / "export"):
        assert {file.name for file in place.iterdir()} >= {name, *by_rank}
        assert len({(place / file).stat().st_ino for file in (name, *by_rank)}) == 1
    assert (run / "quantize" / name).stat().st_ino == (entry / name).stat().st_ino
    assert json.loads((run / "measurements" / "quantize.json").read_text()) == {"seconds": 2}
    assert read_status(run)["state"] == "done" and read_status(run)["seconds"] > 0
    assert (run / "run.log").read_text().endswith("INFO runner: quantize reused, key k\n")
    assert capfd.readouterr().out == "quantize   reused\n"


@pytest.mark.parametrize("why", ["altered", "gone", "folder"])
def test_what_cannot_be_reused_after_all_is_the_worker_s(reused, tmp_path, why, capfd):
    """One process, which makes it or says why not: ranks are for work."""
    run, entry = reused("(run / 'size').write_text(os.environ['WORLD_SIZE'] + ' ' + str(len(sys.argv)))")
    if why == "altered":
        (entry / "quant_model_weight.safetensors").write_text("other weights")
    elif why == "gone":
        shutil.rmtree(entry)
    else:
        (tmp_path / "export").write_text("a file where a folder is wanted")
    launch.launch(run, launched())
    assert (run / "size").read_text() == "1 2" and capfd.readouterr().out == ""
    assert "reused" not in (run / "run.log").read_text()


def test_interrupted_while_it_reuses(reused, monkeypatch):
    run, _ = reused("(run / 'seen').touch()")

    def interrupt(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(Store, "link", interrupt)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(run, launched())
    assert read_status(run) == {"state": "interrupted", "stage": "quantize"} and not (run / "seen").exists()
