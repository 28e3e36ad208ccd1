"""What made a run: the commit, the packages, the machine, the weights. Of the environment names only, never values."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.desk import machine
from runner.desk.checkpoints import Checkpoint, reference_files, weight_files
from runner.desk.faults import spell
from runner.desk.fingerprints import Fingerprints
from runner.desk.precedence import leaves
from runner.desk.recipes import PACKAGE

NONE = "none"
SHOWN = 12  # characters of a hash


def gather(config: Mapping[str, Any], checkpoint: Checkpoint, fingerprints: Fingerprints) -> dict[str, Any]:
    """provenance.json of a run: as much as explains why another machine may get other bytes."""
    return {
        "code": _own_commit(),
        "python": platform.python_version(),
        "packages": packages(),
        "machine": {"id": machine.identity(), **machine.describe(), "os": platform.platform()},
        "seed": config["seed"],
        "prompts": {role: _fingerprint(config["prompts"][role]) for role in ("text", "calibration", "verification")},
        "references": {str(file): fingerprints.sha256(file) for file in reference_files(config)},
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


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """How code, packages, machine and environment of two runs differ, each in a few words.

    Seed, prompts and weights are not looked at here: they are in the stages' lineages.
    """
    for section in ("code", "python", "packages", "machine"):
        then, now = (dict(leaves({section: told.get(section)})) for told in (before, after))
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key):
                yield f"{key} {_short(then.get(key))} → {_short(now.get(key))}"
    names = [set(told.get("environment") or ()) for told in (before, after)]
    for word, only in (("unset in", names[0] - names[1]), ("set only in", names[1] - names[0])):
        if only:
            yield f"environment: {word} the second: {', '.join(sorted(only))}"


@lru_cache(maxsize=1)
def _own_commit() -> dict[str, Any]:
    return commit(PACKAGE.parent)


def commit(folder: Path) -> dict[str, Any]:
    """The commit of the checkout in `folder`, whether files differ from it, and if so a hash of how those do that it
    knows; None each where there is no checkout."""
    unknown = {"commit": None, "dirty": None, "changes": None}
    if not (folder / ".git").exists():
        return unknown
    head, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    if status is None:
        return unknown
    changes = _git(folder, "diff", "HEAD") if status else None
    return {
        "commit": head or None,
        "dirty": status != "",
        "changes": hashlib.sha256(changes.encode()).hexdigest() if changes else None,
    }


@lru_cache(maxsize=1)
def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {str(item.metadata["Name"]): item.version for item in metadata.distributions() if item.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _fingerprint(prompts: list[str]) -> dict[str, Any]:
    canonical = json.dumps(prompts, ensure_ascii=False)
    return {"count": len(prompts), "sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def _short(value: Any) -> str:
    text = NONE if value is None else spell(value)
    return text[:SHOWN] if len(text) in (40, 64) and not set(text) - set("0123456789abcdef") else text


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
