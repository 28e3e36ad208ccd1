"""How long the desk takes: what it says by itself, plans, refusals, a reused run and sweep; and what the store costs.

    python tests/benchmarks/bench_desk.py

Each command in a process of its own, as a user types it, on the shipped weights with two steps and one prompt, the
commands in turn. Printed are the median wall time with its quartiles, and the processor time of all processes, which is
what the wall time comes to on an idle machine. The store's share is measured in one run's worker: the time in its
methods and in writing to disk, against the time of the stage around them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from processor_line import say_processor

ROOT = Path(__file__).parents[2]
ROUNDS = 7
SMALL = ["+recipe=osp12_w8a8", "sampler.num_sampling_steps=2", "model.num_frames=5", "timing.repeats=1"]
PROMPT = "prompts.text=a red circle moving left"
EIGHT = "timing.warmup=1,2,3,4,5,6,7,8"  # changes no result: eight jobs, each with a folder and a page of its own
LARGE = "large"  # folder of a checkpoint of 17 GB
FAULTS = ["model.num_frames=2", "model.dtype=bf61", "prompts.text=nowhere.txt", "quant.bit=4"]
SWEEP = "a reused sweep of 8 jobs"
# Arguments, exit status, and the seconds that a median may take.
COMMANDS: dict[str, tuple[list[str], int, float]] = {
    "python -m runner": ([], 0, 1.5),
    "--help": (["--help"], 0, 1.5),
    "schema": (["schema"], 0, 1.5),
    "show=plan": ([*SMALL, PROMPT, "seed=1", "show=plan"], 0, 1.2),
    "show=plan, 17 GB of weights": ([*SMALL, PROMPT, f"model.checkpoint={LARGE}", "show=plan"], 0, 3),
    "an unknown recipe": (["+recipe=osp12_w8a9"], 2, 3),
    "four faults at once": ([*SMALL, *FAULTS], 2, 3),
    "a reused run": ([*SMALL, PROMPT, "seed=1"], 0, 2),
    SWEEP: (["-m", *SMALL, PROMPT, "seed=1", EIGHT], 0, 10),
}


def run(arguments: list[str], folder: Path, status: int = 0) -> tuple[float, float]:
    """Wall and processor seconds of a command that ends with `status`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "runner", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode != status:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def large_checkpoint(folder: Path) -> None:
    """17 GB of nothing (a file with a hole) in the layout of the shipped weights, its hash known."""
    from runner.model.checkpoints import EMBEDDED_FOLDER

    shutil.copytree(EMBEDDED_FOLDER / "osp12", folder / LARGE)
    weights, known = folder / LARGE / "diffusion_pytorch_model.safetensors", folder / "outputs/.store/fingerprints.json"
    with weights.open("r+b") as file:
        file.truncate(17_000_000_000)
    state = weights.stat()
    entry = {str(weights): [state.st_size, state.st_mtime_ns, state.st_ino, "9" * 64]}
    known.write_text(json.dumps(json.loads(known.read_text()) | entry))


def commands(folder: Path) -> bool:
    """Time all commands; whether each median is within its limit."""
    run(COMMANDS[SWEEP][0], folder)  # makes what the others reuse
    large_checkpoint(folder)
    walls, cpus = defaultdict(list), defaultdict(list)
    for _ in range(ROUNDS):
        for name, (arguments, status, _) in COMMANDS.items():
            wall, cpu = run(arguments, folder, status)
            walls[name].append(wall)
            cpus[name].append(cpu)
    for name, (_, _, limit) in COMMANDS.items():
        low, middle, high = statistics.quantiles(walls[name], n=4)
        spent = statistics.median(cpus[name])
        print(f"{name:<28} {middle:6.2f} s ({low:.2f} to {high:.2f}), processor {spent:.2f} s, limit {limit} s")
    return all(statistics.median(walls[name]) <= limit for name, (_, _, limit) in COMMANDS.items())


def store(folder: Path) -> None:
    """Seconds of each stage of the main job that its worker spends in the store and in waiting for the disk."""
    from runner import worker
    from runner.stages import dump, sample
    from runner.store.artifacts import Store

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
    say_processor()
    with tempfile.TemporaryDirectory() as folder:
        in_time = commands(Path(folder).resolve())
        store(Path(folder).resolve())
    sys.exit(not in_time)
