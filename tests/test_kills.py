"""Killed at any moment, a run loses one prompt at most, leaves no process, and the same command finishes it with the
bytes of an undisturbed run. On the shipped weights, four steps."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from crash_runs import ORDER, WORKING, entries, finish, processes, results, runs, start, stored_before, until

from runner.store.artifacts import AGAIN
from runner.store.status import read_status

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc who is alive")

MEASURED = ".store/measurements/*/search-cache-*.json"


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
    ("stage", "more"),
    [
        ("search-cache", ["cache=dit_cache", "cache.ratio=1.1", "sampler.num_sampling_steps=10"]),
        ("search-schedule", ["sampler.search=recording", "recording.steps=20", "sampler.noise=path"]),
        ("search-schedule", ["sampler.search=ays", "recording.steps=8", "sampler.monte_carlo_iters=3"]),
        ("benchmark", ["timing.benchmark=true", "timing.warmup=1", "timing.repeats=4"]),
    ],
)
def test_a_stage_that_keeps_trials_makes_the_same_when_it_is_killed(tmp_path, stage, more):
    """Equal measurements are the premise of a cache's search: times of blocks in dump, and of its own trials."""
    undisturbed, draw, kills = tmp_path / "undisturbed", random.Random(20240708), list[Kill]()
    finish(undisturbed, *more)
    seconds = durations(runs(undisturbed)[0])[stage]
    while (fell := sum(kill.fell == stage for kill in kills)) < 2:
        assert len(kills) < 6, "most kills miss the stage"
        kills.append(Kill(len(kills), stage, draw.choice(("desk", "worker", "all"))))
        output = tmp_path / str(kills[-1].number)
        stored_before(undisturbed, output, stage)
        shutil.copytree(undisturbed / ".store" / "measurements", output / ".store" / "measurements")
        finished = kill_once(kills[-1], output, more, seconds)
        finish(output, *more)
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
    chosen = [pid for pid, role in sorted(alive.items()) if kill.victim in (role, "all")]
    assert chosen or standing["state"] != "running", f"no {kill.victim} among {alive}"
    for pid in chosen if kill.victim == "all" else draw.sample(chosen, min(1, len(chosen))):
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
