"""The front door in a process of its own, and the folder that it leaves."""

import os
import subprocess
import sys
from pathlib import Path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runner", *arguments, f"output={folder}"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run_folder(output: Path, name: str) -> Path:
    """The newest run folder of a recipe."""
    return sorted((output / name).iterdir(), key=lambda path: path.stat().st_mtime_ns)[-1]
