"""What made a run: the commit, the packages, the machine, the weights. Of the environment names only, never values."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.desk import machine
from runner.desk.checkpoints import Checkpoint, weight_files
from runner.desk.fingerprints import Fingerprints
from runner.desk.recipes import PACKAGE


def gather(config: Mapping[str, Any], checkpoint: Checkpoint, fingerprints: Fingerprints) -> dict[str, Any]:
    """provenance.json of a run: as much as explains why another machine may get other bytes."""
    return {
        "code": commit(PACKAGE.parent),
        "python": platform.python_version(),
        "packages": packages(),
        "machine": {"id": machine.identity(), **machine.describe(), "os": platform.platform()},
        "seed": config["seed"],
        "prompts": config["prompts"],
        "checkpoint": {
            "label": checkpoint.label,
            "path": checkpoint.path,
            "files": {
                name: {"path": str(file), "sha256": fingerprints.sha256(file)}
                if isinstance(file, Path)
                else {"hub": file}
                for name, file in weight_files(config).items()
            },
        },
        "environment": sorted(os.environ),
    }


def commit(folder: Path) -> dict[str, Any]:
    """The commit of the checkout in `folder` and whether files differ from it; both None where there is no checkout."""
    unknown = {"commit": None, "dirty": None}
    if not (folder / ".git").exists():
        return unknown
    head, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return {"commit": head or None, "dirty": status != ""} if status is not None else unknown


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {str(item.metadata["Name"]): item.version for item in metadata.distributions() if item.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
