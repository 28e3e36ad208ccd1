"""Runs on the shipped weights, four steps, for tests that kill, interrupt or fail them; and what they leave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.desk.plan.stages import STAGES
from runner.store.artifacts import MANIFEST, Store

ARGUMENTS = [
    "+recipe=osp12_w8a8", "sampler.num_sampling_steps=4", "sampler.guidance_batch=separate",
    "timing.repeats=1", "sample.judge=none",
    "prompts.text=[a red circle moving left,a blue square growing]", "prompts.calibration=[a cyan square moving down]",
    "model.num_frames=5", "model.height=32", "model.width=32",
]  # fmt: skip
WORKING = ("dump", "calibrate", "quantize", "sample")  # the stages of this recipe that do work, in order
ORDER = [stage.name for stage in STAGES]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
ROLES = {"runner": "desk", "runner.parallel.launcher": "launcher", "runner.worker": "worker"}  # by module
MARK = "RUNNER_CRASH_TEST"  # in the environment of all that a command starts: the output folder


def start(output: Path, *more: str, flags: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *flags, *ARGUMENTS, *more, f"output={output}"],
        start_new_session=True, text=True,
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


def stored_before(undisturbed: Path, output: Path, stage: str | None) -> None:
    """Have all before `stage` stored; None: all."""
    for name in entries(undisturbed):
        if stage is None or ORDER.index(name.rpartition("-")[0]) < ORDER.index(stage):
            shutil.copytree(undisturbed / ".store" / name, output / ".store" / name)


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
                module = words[words.index("-m") + 1] if "-m" in words else ""  # torchrun starts its ranks with -u -m
                found[pid] = ROLES.get(module, words[0])
        except OSError:
            continue
    return found
