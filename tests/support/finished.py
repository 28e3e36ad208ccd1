"""A run by the front door in a process of its own that must succeed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(outputs: Path, *arguments: str, env: dict[str, str] | None = None) -> Path:
    """One run by the front door; its folder."""
    done = subprocess.run(
        [sys.executable, "-m", "runner", f"output={outputs}", *arguments],
        capture_output=True, text=True, env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(next(line for line in done.stdout.splitlines() if line.startswith("run ")).split()[1])
