"""Where a run stands, in its folder: status.json. The desk and the worker both write it, the worker while it lives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.store.durable import write_json

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130  # exit statuses
PEER_LOST = 75  # of a rank that only saw another one go
STDERR = "stderr.log"  # what a worker wrote to its standard error: what it could not say in run.log
FINAL = ("done", "failed")  # states after which a worker has no more to say


def read_status(run: Path) -> dict[str, Any]:
    """status.json of a run, {} if there is none yet."""
    try:
        status: dict[str, Any] = json.loads((run / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status


def write_status(run: Path, state: str, **facts: Any) -> None:
    """Replace status.json. `state` is running, done, failed, interrupted or, of a sweep's job, refused."""
    write_json(run / "status.json", {"state": state, **facts})
