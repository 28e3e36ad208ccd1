"""Killed at any moment, a run loses one prompt at most, leaves no process, and the same command finishes it with the
bytes of an undisturbed run. On the shipped weights, four steps."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runner.desk.stages import STAGES
from runner.desk.store import AGAIN, MANIFEST, Store
from runner.status import read_status

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc who is alive")

ARGUMENTS = [
    "+recipe=osp12_w8a8", "sampler.num_sampling_steps=4", "sampler.guidance_batch=separate",
    "timing.repeats=1", "sample.judge=none",
    "prompts.text=[a red circle moving left,a blue square growing]", "prompts.calibration=[a cyan square moving down]",
    "model.num_frames=5", "model.height=32", "model.width=32",
]  # fmt: skip
WORKING = ("dump", "calibrate", "quantize", "sample")  # the stages of this recipe that do work, in order
ORDER = [stage.name for stage in STAGES]
TRIES = Path(__file__).with_name("crash_tries.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
ROLES = {"runner": "desk", "runner.parallel.launcher": "launcher", "runner.worker": "worker"}  # by module
MEASURED = ".store/measurements/*/search-cache-*.json"
MARK = "RUNNER_CRASH_TEST"  # in the environment of all that a command starts: the output folder


def start(output: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *ARGUMENTS, *more, f"output={output}"], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**ENVIRONMENT, MARK: str(output)},
    )  # fmt: skip


def finish(output: Path, *more: str) -> None:
    desk = start(output, *more)
    told, _ = desk.communicate(timeout=500)
    assert desk.returncode == 0, told


def runs(output: Path) -> list[Path]:
    """The run folders, the newest last."""
    return sorted((path.parent for path in output.glob("*/*/plan.json")), key=lambda run: run.stat().st_ctime_ns)


def entries(output: Path) -> dict[str, bytes]:
    """The manifests, which have the hash of every byte, of all that is stored, and that it is what they say."""
    store = Store(output / ".store")
    found = {}
    for manifest in store.root.glob(f"*/{MANIFEST}"):
        stage, _, key = manifest.parent.name.rpartition("-")
        assert store.find(stage, key, thorough=True), manifest.parent
        found[manifest.parent.name] = manifest.read_bytes()
    return found


def results(run: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(run)): file.read_bytes()
        for stage in WORKING
        for file in (run / stage).rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("undisturbed")
    finish(output)
    assert {name.rpartition("-")[0] for name in entries(output)} == set(WORKING)
    return output


def stored_before(undisturbed: Path, output: Path, stage: str | None) -> None:
    """Have all before `stage` stored; None: all."""
    for name in entries(undisturbed):
        if stage is None or ORDER.index(name.rpartition("-")[0]) < ORDER.index(stage):
            shutil.copytree(undisturbed / ".store" / name, output / ".store" / name)


def hit(how: str, undisturbed: Path, store: Path, *who: str | Path) -> Counter[str]:
    """Hit at every operation; how often at which, in which stage."""
    done = subprocess.run(
        [sys.executable, TRIES, how, undisturbed / ".store", store, *who],
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0
    told = json.loads(done.stdout)
    hits = Counter(f"{name} {stage}".strip() for name, _, stage in told["hits"])
    print(f"\n{how}, {sum(hits.values())} hits:", dict(hits))
    assert told["left"] == []
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "fail"])
def test_a_worker_hit_at_every_rename_and_fsync(undisturbed, tmp_path, how):
    template = tmp_path / "template"
    template.mkdir()
    (run,) = runs(undisturbed)
    for name in ("run.json", "plan.json"):
        shutil.copy(run / name, template)
    hits = hit(how, undisturbed, tmp_path / ".store", "worker", template)
    assert entries(tmp_path) == entries(undisturbed)
    assert set(hits) >= {f"{name} {stage}" for name in ("rename", "replace", "fsync") for stage in WORKING}


@pytest.mark.slow
def test_a_desk_hit_at_every_rename_and_fsync(undisturbed, tmp_path):
    stored_before(undisturbed, tmp_path, "calibrate")
    arguments = [*ARGUMENTS, "until=calibrate", f"output={tmp_path}"]
    hits = hit("kill", undisturbed, tmp_path / ".store", "desk", *arguments)
    assert hits["replace"] >= 5  # the plan, the provenance, the run, a lineage, the page
    assert (runs(tmp_path)[-1] / "report.html").is_file()


def test_two_runs_at_once_make_each_artifact_once(undisturbed, tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    told = [desk.communicate(timeout=500)[0] for desk in both]
    assert [desk.returncode for desk in both] == [0, 0], told
    assert entries(tmp_path) == entries(undisturbed)
    logs = [(run / "run.log").read_text() for run in runs(tmp_path)]
    assert len(logs) == 2
    for stage in WORKING:
        assert sum(log.count(f"{stage} starts") for log in logs) == 1, stage
    assert any(" waits for process " in words and str(tmp_path) in words for words in told)
    for run in runs(tmp_path):
        assert results(run) == results(runs(undisturbed)[0])


@pytest.mark.parametrize(
    ("stage", "answers"),
    [("dump", False), pytest.param("dump", True, marks=pytest.mark.slow), ("sample", True)],
)
def test_asked_to_end_a_run_ends_soon_and_leaves_a_clean_store(undisturbed, tmp_path, stage, answers):
    stored_before(undisturbed, tmp_path, stage)
    desk = start(tmp_path)
    until(lambda: list(tmp_path.glob(".store/drafts/*/*.part")) or desk.poll() is not None, 300)
    worker = next(pid for pid, role in processes(tmp_path).items() if role == "worker")  # it may have a child, ffmpeg
    if not answers:
        os.kill(worker, signal.SIGSTOP)
    began = time.monotonic()
    desk.send_signal(signal.SIGINT)
    until(lambda: processes(tmp_path).keys() <= {desk.pid}, 5)
    told, _ = desk.communicate(timeout=60)
    assert desk.returncode == 130, told
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)  # with others, and then the page takes what it takes
    assert busy or time.monotonic() - began < 5
    assert not processes(tmp_path)
    assert read_status(runs(tmp_path)[-1])["state"] == "interrupted"
    unfinished = [path for path in tmp_path.glob(".store/**/*") if path.name.startswith(".") or path.suffix == ".part"]
    assert not unfinished
    assert entries(tmp_path).items() <= entries(undisturbed).items()
    finish(tmp_path)
    assert entries(tmp_path) == entries(undisturbed)


@dataclass
class Kill:
    """One kill: the stage that was drawn, who is killed, and what came of it."""

    number: int
    drawn: str
    victim: str
    fell: str = ""  # the stage that it fell in; "" if the run was done by then


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "victims", "wanted"),
    [
        pytest.param([], ("desk", "worker", "all"), 5, id="one process"),
        pytest.param(["parallel=cfg2"], ("desk", "launcher", "worker", "all"), 2, id="two ranks"),
        pytest.param(["redo={stage}"], ("desk", "worker", "all"), 1, id="redo"),
    ],
)
def test_random_kills(undisturbed, tmp_path, more, victims, wanted):
    """A stage is drawn, then a moment in it, and who is killed: the desk, its launcher, one worker, or all; until each
    stage has got its share. A kill that comes late falls in a later stage, and is counted there."""
    at_once, draw = 2, random.Random(20240707)
    seconds = durations(runs(undisturbed)[0])
    kills: list[Kill] = []

    def strike(kill: Kill) -> None:
        output, asked = tmp_path / str(kill.number), [word.format(stage=kill.drawn) for word in more]
        redone = asked != more
        stored_before(undisturbed, output, None if redone else kill.drawn)
        finished = kill_once(kill, output, asked, seconds[kill.drawn])
        if redone:  # what is made again stays, whole, until there is another one
            assert entries(output) == entries(undisturbed)
        finish(output, *asked)
        kept = {path: inode for path, inode in finished.items() if not redone or "drafts" in path.parts}
        assert_kept(output, kept)
        assert entries(output) == entries(undisturbed)
        assert results(runs(output)[-1]).items() >= results(runs(undisturbed)[0]).items()  # exports, by rank, too
        assert not list((output / ".store" / "drafts").iterdir())
        for stage, took in durations(runs(output)[-1]).items():  # there it began with nothing loaded
            seconds[stage] = max(took, seconds[stage])
        shutil.rmtree(output)

    while missing := [stage for stage in WORKING for _ in range(wanted - sum(kill.fell == stage for kill in kills))]:
        assert len(kills) < 2 * wanted * len(WORKING), "most kills miss their stage"
        draw.shuffle(missing)
        new = [Kill(n, stage, victims[n % len(victims)]) for n, stage in enumerate(missing, len(kills))]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(strike, new))
        kills += new
    fell = Counter((kill.fell, kill.victim) for kill in kills if kill.fell)
    print(f"\n{sum(fell.values())} kills in {len(kills)} runs, {sum(k.fell == k.drawn for k in kills)} where drawn")
    for stage in WORKING:
        print(f"  {stage:<10}", *(f"{fell[stage, who]:>2} {who}" for who in victims))
    assert sum(fell.values()) >= wanted * len(WORKING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "search"),
    [
        ("search-cache", ["cache=dit_cache", "cache.ratio=1.1", "sampler.num_sampling_steps=10"]),
        ("search-schedule", ["sampler.search=recording", "recording.steps=20", "sampler.noise=path"]),
    ],
)
def test_a_search_that_is_killed_finds_the_same(tmp_path, stage, search):
    """Equal measurements are the premise of a cache's: the block times of dump and the seconds of its own trials."""
    undisturbed, draw, kills = tmp_path / "undisturbed", random.Random(20240708), list[Kill]()
    finish(undisturbed, *search)
    seconds = durations(runs(undisturbed)[0])[stage]
    while (fell := sum(kill.fell == stage for kill in kills)) < 2:
        assert len(kills) < 6, "most kills miss the search"
        kills.append(Kill(len(kills), stage, draw.choice(("desk", "worker", "all"))))
        output = tmp_path / str(kills[-1].number)
        stored_before(undisturbed, output, stage)
        shutil.copytree(undisturbed / ".store" / "measurements", output / ".store" / "measurements")
        finished = kill_once(kills[-1], output, search, seconds)
        finish(output, *search)
        assert_kept(output, finished)
        assert entries(output) == entries(undisturbed)
        trials = [[json.loads(f.read_text())["trials"] for f in out.glob(MEASURED)] for out in (output, undisturbed)]
        assert trials[0] == trials[1] and (stage != "search-cache" or trials[0])
    print(f"\n{fell} kills in {len(kills)} runs:", *(kill.victim for kill in kills))


def assert_kept(output: Path, finished: Mapping[Path, int]) -> None:
    """What was finished before the kill, by inode, is in the store now."""
    for path, inode in finished.items():
        now = path if path.exists() else output / ".store" / path.parent.name.removesuffix(AGAIN) / path.name
        assert now.stat().st_ino == inode, f"{path} was made a second time"


def kill_once(kill: Kill, output: Path, more: Sequence[str], seconds: float) -> dict[Path, int]:
    """Run the command, strike, and see that nobody is left; the inodes of all that was finished by then."""
    draw = random.Random(kill.number)
    desk = start(output, *more)
    until(lambda: reached(output, kill.drawn) or desk.poll() is not None, 300)
    time.sleep(draw.uniform(0, seconds))
    (run,) = runs(output)
    alive = processes(output)
    standing = read_status(run)
    one = [pid for pid, role in sorted(alive.items()) if role == kill.victim]
    for pid in alive if kill.victim == "all" else one and [draw.choice(one)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(output).keys() - {desk.pid}, 10, look=0.1)
    told, _ = desk.communicate(timeout=60)
    if standing["state"] == "running" and desk.returncode != 0:
        assert desk.returncode == (-signal.SIGKILL if kill.victim in ("desk", "all") else 1), told
        kill.fell = read_status(run)["stage"]
    half = list(output.glob(".store/drafts/*/*.part"))
    assert len(half) <= (kill.victim != "worker"), "more than one prompt was under way, or the desk did not tidy"
    return {
        path: path.stat().st_ino for glob in ("drafts/*/prompt-???", "*-*/*") for path in output.glob(f".store/{glob}")
    }


def durations(run: Path) -> dict[str, float]:
    """Seconds that each stage took, by the log."""
    times: dict[str, list[datetime]] = {}
    for line in (run / "run.log").read_text().splitlines():
        day, clock, _, _, stage, does, *_ = line.split()
        if does in ("starts,", "done"):
            times.setdefault(stage, []).append(datetime.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S,%f"))
    return {stage: (done - began).total_seconds() for stage, (began, done) in times.items()}


def reached(output: Path, stage: str) -> bool:
    """Whether a run is at `stage`, or past it."""
    told = read_status(runs(output)[0]) if runs(output) else {}
    return told.get("state") == "done" or (
        told.get("stage") in ORDER and ORDER.index(told["stage"]) >= ORDER.index(stage)
    )


def until(condition: Callable[[], Any], seconds: float, look: float = 0.005) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(look)


def processes(output: Path) -> dict[int, str]:
    """All that lives of what the command on this output folder has started, whoever its parent is by now, and what it
    is: desk, launcher, worker, or another's name."""
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if f"{MARK}={output}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):  # a zombie: none
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                found[pid] = ROLES.get(words[2] if words[1:2] == ["-m"] else "", words[0])
        except OSError:
            continue
    return found
