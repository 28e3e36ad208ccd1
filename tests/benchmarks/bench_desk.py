"""How long the desk takes: what it says by itself, a plan, a reused run, a reused sweep; and what the store costs.

    python tests/benchmarks/bench_desk.py

Each command in a process of its own, as a user types it, on the shipped weights with two steps and one prompt, the
commands in turn. Printed are the median wall time with its quartiles, and the processor time of all processes, which is
what the wall time comes to on an idle machine. The store's share is measured in one run's worker: the time in its
methods and in writing to disk, against the time of the stage around them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROUNDS = 7
SMALL = ["+recipe=osp12_w8a8", "sampler.num_sampling_steps=2", "model.num_frames=5", "timing.repeats=1"]
PROMPT = "prompts.text=a red circle moving left"
SEEDS = "seed=" + ",".join(map(str, range(1, 9)))
COMMANDS = {
    "python -m runner": [],
    "--help": ["--help"],
    "show=plan": [*SMALL, PROMPT, "seed=1", "show=plan"],
    "a reused run": [*SMALL, PROMPT, "seed=1"],
    "a reused sweep of 8 jobs": ["-m", *SMALL, PROMPT, SEEDS],
}


def run(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of a command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "runner", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(done.stderr)
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def commands(folder: Path) -> None:
    run(COMMANDS["a reused sweep of 8 jobs"], folder)  # makes what the others reuse
    walls, cpus = defaultdict(list), defaultdict(list)
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            wall, cpu = run(arguments, folder)
            walls[name].append(wall)
            cpus[name].append(cpu)
    for name in COMMANDS:
        low, middle, high = statistics.quantiles(walls[name], n=4)
        processor = statistics.median(cpus[name])
        print(f"{name:<26} {middle:6.2f} s ({low:.2f} to {high:.2f}), processor {processor:.2f} s")


def store(folder: Path) -> None:
    """Seconds of each stage of the main job that its worker spends in the store and in waiting for the disk."""
    from runner import worker
    from runner.desk.store import Store
    from runner.stages import dump, sample

    run(["+recipe=osp12_w8a8", "output=first"], folder)  # its plan is followed below, in another store
    (planned,) = (folder / "first").glob("*/*/plan.json")
    again = folder / "again"
    again.mkdir()
    plan = json.loads(planned.read_text())
    (again / "run.json").write_bytes((planned.parent / "run.json").read_bytes())
    (again / "plan.json").write_text(json.dumps(plan | {"store": str(folder / "other")}))

    worker.quiet()  # imports what is no stage's
    spent: dict[str, float] = defaultdict(float)
    stage = ""

    def clocked(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal stage
            if name == "draft":
                stage = arguments[1]
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[stage] += time.perf_counter() - start

        setattr(owner, name, call)

    for name in ("find", "draft", "write_measurements", "commit", "link", "link_measurements"):
        clocked(Store, name)
    for room in (dump, sample):
        clocked(room, "finish")
    if worker.main([again]):
        raise SystemExit((again / "traceback.txt").read_text())
    for name in filter(None, spent):
        seconds = json.loads((again / "measurements" / f"{name}.json").read_text())["seconds"]
        print(f"the store, of {name:<12} {100 * spent[name] / seconds:6.2f} % ({spent[name]:.3f} of {seconds:.1f} s)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        commands(Path(folder))
        store(Path(folder))
