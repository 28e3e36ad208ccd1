"""Short runs of the main recipe, and the bytes of what they make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHORT = ["+recipe=osp12_w8a8", "prompts.text=a red boat", "sampler.num_sampling_steps=2", "timing.repeats=0"]
SHORT += ["sample.judge=none", "dump.format=pth"]


def command(checkpoint: Path, output: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "runner", *SHORT, f"model.checkpoint={checkpoint}", f"output={output}"),
        *arguments,
    ]


def run(checkpoint: Path, output: Path, *arguments: str) -> Path:
    """The run folder of one command."""
    done = subprocess.run(command(checkpoint, output, *arguments), capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (output / "osp12_w8a8").iterdir()
    (folder / "terminal.txt").write_text(done.stdout)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of what the stages made, by path; names by rank apart."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for stage in ("dump", "calibrate", "quantize", "sample")
        for file in sorted((folder / stage).rglob("*"))
        if file.is_file() and not file.stem.endswith(("_0", "_1"))
    }
