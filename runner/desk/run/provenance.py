"""What made a run: the commit, the packages, the machine, the weights. Of the environment names only, never values."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.config.faults import spell
from runner.config.precedence import leaves
from runner.config.recipes import PACKAGE
from runner.model.checkpoints import Checkpoint, reference_files, weight_files
from runner.store import machine
from runner.store.fingerprints import Fingerprints

HEADER = re.compile(r"^(Name|Version):[ \t]*(.*\S)", re.MULTILINE)  # of a distribution's METADATA
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
    told = _git(folder, "status", "--porcelain=v2", "--branch")
    if told is None:
        return unknown
    about, files = _split(told)
    changes = _git(folder, "diff", "HEAD") if files else None
    head = about.get("branch.oid")
    return {
        "commit": None if head == "(initial)" else head,
        "dirty": bool(files),
        "changes": hashlib.sha256(changes.encode()).hexdigest() if changes else None,
    }


def _split(status: str) -> tuple[dict[str, str], list[str]]:
    """What git's status says of the branch, by name, and its lines about files that differ."""
    lines = status.splitlines()
    about = dict(line.removeprefix("# ").partition(" ")[::2] for line in lines if line.startswith("# "))
    return about, [line for line in lines if not line.startswith("# ")]


@lru_cache(maxsize=1)
def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    told = (_headers(item) for item in metadata.distributions())
    found = {headers["Name"]: headers.get("Version", "") for headers in told if "Name" in headers}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _headers(item: metadata.Distribution) -> dict[str, str]:
    """Name and version of a distribution. Its `metadata` parses the whole description as a mail, at each look."""
    text = item.read_text("METADATA") or item.read_text("PKG-INFO") or item.read_text("") or ""
    return dict(HEADER.findall(text.partition("\n\n")[0]))


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
