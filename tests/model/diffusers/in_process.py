"""A whole run in this process: what the front door composes, checked, planned, and followed by the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from rich.console import Console

from runner.__main__ import _open
from runner.bench.context import Bench
from runner.config import recipes
from runner.desk.run.job import prepare
from runner.worker import attempt


def run(folder: Path, *arguments: str, bench: Bench | None = None) -> tuple[Path, dict[str, Any]]:
    """Follow `arguments` in a run folder inside `folder`; that folder and the checked configuration."""
    arguments = (*arguments, f"output={folder}")
    recipes.register(arguments)
    try:
        overrides = _open(arguments)
        with initialize_config_dir(str(recipes.folder("conf")), version_base="1.3"):
            job = prepare(compose("config", overrides), overrides)
    finally:
        ConfigStore.instance().repo.pop("recipe", None)
    run = folder / f"run-{len(list(folder.iterdir()))}"
    run.mkdir()
    job.write(run)
    if not attempt(run, bench or Bench(), Console(quiet=True)):
        raise AssertionError((run / "traceback.txt").read_text())
    return run, job.config
