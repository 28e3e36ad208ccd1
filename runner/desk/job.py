"""One job: what was composed, checked and planned, and the run folder that it becomes."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.desk import graph, launch, provenance, show
from runner.desk.config import Checked, check
from runner.desk.faults import Fault, Refused
from runner.desk.fingerprints import Fingerprints, write_whole
from runner.desk.graph import PlannedStage
from runner.desk.store import Store

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Job:
    """A configuration that may run, and its plan."""

    checked: Checked
    overrides: tuple[str, ...]
    store: Store
    fingerprints: Fingerprints
    planned: Sequence[PlannedStage]

    @property
    def config(self) -> dict[str, Any]:
        return self.checked.config

    def write(self, run: Path) -> None:
        """Write what the worker and the page read: run.json, plan.json, provenance.json, and each key's lineage."""
        checked = self.checked
        described = {
            "name": self.config["name"],
            "command": ["python", "-m", "runner", *(override.removeprefix("++") for override in self.overrides)],
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": self.config,
            "origin": checked.origin,
            "checkpoint": asdict(checked.checkpoint),
        }
        made_of = provenance.gather(self.config, checked.checkpoint, self.fingerprints)
        plan = {"store": str(self.store.root), "stages": [asdict(stage) for stage in self.planned]}
        for name, content in (("plan", plan), ("provenance", made_of), ("run", described)):
            write_whole(run / f"{name}.json", json.dumps(content, indent=2, ensure_ascii=False))
        for stage in (stage for stage in self.planned if stage.action == "run"):
            self.store.write_lineage(stage.does, stage.key, {**stage.lineage, "code": made_of["code"]})


def prepare(composed: DictConfig, overrides: Sequence[str]) -> Job:
    """Check and plan what Hydra composed from `overrides`.

    Raises Refused with all faults, or where a stage must run and nothing can be stored.
    """
    checked = check(composed, overrides)
    store = Store(Path(checked.config["output"]) / ".store")
    fingerprints = Fingerprints(store.root / "fingerprints.json")
    if (unread := graph.unread(checked.config, fingerprints)) > 1 << 30:
        print(f"reading {unread / 1e9:.0f} GB of weights once, to know them again", file=sys.stderr)
    planned = graph.plan(checked.config, store, fingerprints)
    fingerprints.save()
    missing = [stage.stage for stage in planned if stage.action == "run"]
    if missing and checked.config["show"] != "plan" and (why := store.writable()):
        expected = f"expected a store that can be written, since {', '.join(missing)} must run ({why})"
        raise Refused([Fault("output", expected, checked.config["output"])])
    return Job(checked, tuple(overrides), store, fingerprints, planned)


def follow(job: Job, folder: Path, claimed: bool = False) -> None:
    """Show the plan, and unless that is all that is asked for run it in `folder` (`claimed`: it is this run's alone).

    The page is written however the run ends. Raises RunFailed.
    """
    if job.config["show"] == "plan":
        show.show_plan(job.planned, job.checked.checkpoint, None)
        return
    run = folder if claimed else claim(folder)
    show.show_plan(job.planned, job.checked.checkpoint, run)
    job.write(run)
    try:
        launch.launch(run, job.config)
    finally:  # the page of a run that failed is the one that somebody needs most
        from runner.desk import report

        print(f"page     {report.write(run)}")


def claim(folder: Path) -> Path:
    """A run folder that is this run's alone, even if another one starts in the same second."""
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        candidate.mkdir(parents=True, exist_ok=True)
        try:
            (candidate / "run.json").touch(exist_ok=False)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there is always a next number")


def discard_if_empty(folder: Path) -> None:
    """Remove the folders that Hydra made for a run that did not come to be."""
    for empty in (folder, folder.parent, folder.parent.parent):
        try:
            empty.rmdir()
        except OSError:
            return
