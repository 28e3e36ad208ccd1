"""What becomes of a stage that is finished, made or reused: its files by the names that others look for, where the
user wants them, and the lines in terminal and run.log. The worker does it, or the desk where nothing is to make."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.store.artifacts import Store

log = logging.getLogger("runner")

# By stage: the key of the folder, or of the one file, that also gets its files, and which they are.
DELIVERED = {
    "dump": ("dump.folder", "calib_data*.pth"),
    "search-schedule": ("sampler.save_dir", "searched_schedule.txt"),
    "quantize": ("quant.folder", "quant_model_*"),
    "search-cache": ("cache.save_path", "cache_config.json"),
    "benchmark": ("sample.folder", "videos/*"),
    "sample": ("sample.folder", "videos/*"),
}
# Of these stages: the files that each rank of a parallel runtime looks for under its own name.
NAMED_BY_RANK = {"dump": "calib_data.pth", "quantize": "quant_model_*"}


def tell_reused(planned: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Say that a stage of a plan is reused."""
    log.info("%s reused, key %s", planned["stage"], planned["key"])
    say(f"{planned['stage']:<10} reused")


def tell_waiting(planned: Mapping[str, Any], holder: str, say: Callable[[str], None]) -> None:
    """Say for whom a stage of a plan waits."""
    log.info("%s waits for %s", planned["stage"], holder)
    say(f"{planned['stage']:<10} waits for {holder}, which makes the same")


def deliver(store: Store, planned: Mapping[str, Any], run: Path, config: Mapping[str, Any]) -> None:
    """Complete the run folder that a stage's artifact was linked into, and copy what the user wants in a folder of
    their own, whether it was made now or reused."""
    _name_by_rank(planned["stage"], run, config["parallel"]["world_size"])
    store.link_measurements(planned["does"], planned["key"], run, planned["stage"])
    key, pattern = DELIVERED.get(planned["stage"], ("", ""))
    section, _, name = key.partition(".")
    if key and (wanted := config[section][name]):
        one = Path(wanted) if name == "save_path" else None
        folder = one.parent if one else Path(wanted)
        folder.mkdir(parents=True, exist_ok=True)
        copied: dict[int, Path] = {}  # by inode: one copy on disk there, too
        for file in sorted((run / planned["stage"]).glob(pattern)):
            target, inode = one or folder / file.name, file.stat().st_ino
            if inode in copied:
                _link_or_copy(copied[inode], target)
            else:
                copied[inode] = target
                shutil.copy2(file, target)


def _name_by_rank(stage: str, run: Path, ranks: int) -> None:
    """Give what each rank of a parallel runtime looks for a name for each: further names of the one file on disk."""
    if ranks == 1 or stage not in NAMED_BY_RANK:
        return
    for file in sorted((run / stage).glob(NAMED_BY_RANK[stage])):
        for rank in range(ranks):
            _link_or_copy(file, file.with_name(f"{file.stem}_{rank}{file.suffix}"))


def _link_or_copy(file: Path, target: Path) -> None:
    """Another name for a file, or a copy of it where there are no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


@contextmanager
def logged(run: Path) -> Iterator[None]:
    """Have what this process and its libraries log written to run.log."""
    handler = logging.FileHandler(run / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
