"""Other people's packages, run in processes and environments of their own: this project depends on none of them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def python_with(package: str, variable: str) -> str:
    """The interpreter that has `package`: what `variable` names, or this one; skips the test if there is none."""
    if python := os.environ.get(variable):
        return python
    if importlib.util.find_spec(package):
        return sys.executable
    pytest.skip(
        f"{package} is not installed; {variable}=PYTHON names an environment that has it (see the test's docstring)"
    )


def run_client(python: str, client: str, *arguments: str | Path, **environment: str) -> str:
    """Run tests/quant/<client> under `python` with this project on its path; its output, in the error if it fails."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    done = subprocess.run(
        [python, HERE / client, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
