"""One job: what was composed, checked and planned, and the run folder that it becomes."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.faults import Fault, Refused
from runner.config.precedence import explicit
from runner.desk.check.config import MACHINE, Checked, check
from runner.desk.plan import graph, notes
from runner.desk.plan.graph import PlannedStage
from runner.desk.plan.needs import casts_layerwise, short_of_disk, short_of_memory
from runner.desk.run import launch, provenance
from runner.desk.run.probe import probe
from runner.desk.show import terminal
from runner.store.artifacts import Store
from runner.store.durable import write_json
from runner.store.fingerprints import Fingerprints
from runner.store.status import write_status

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Job:
    """A configuration that may run, its plan, and what was typed after `python -m runner` to get it."""

    checked: Checked
    typed: tuple[str, ...]
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
            "command": ["python", "-m", "runner", *self.typed],
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": self.config,
            "origin": checked.origin,
            "checkpoint": asdict(checked.checkpoint),
        }
        made_of = provenance.gather(self.config, checked.checkpoint, self.fingerprints)
        plan = {"store": str(self.store.root), "stages": [asdict(stage) for stage in self.planned]}
        for name, content in (("plan", plan), ("provenance", made_of), ("run", described)):
            write_json(run / f"{name}.json", content)
        for stage in (stage for stage in self.planned if stage.action == "run"):
            self.store.write_lineage(stage.does, stage.key, {**stage.lineage, "code": made_of["code"]})


@dataclass
class Member:
    """One combination as Hydra hands it over: its place, its folder, whether it is a sweep's, and what was typed for
    it; of a sweep's also the job that it is, or why it may not run."""

    number: int
    folder: Path
    swept: bool
    overrides: tuple[str, ...]
    composed: DictConfig
    job: Job | None = None
    refused: Refused | None = None

    @cached_property
    def sets(self) -> dict[str, Any]:
        """What was typed, by key; a group's member by the group's name."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parsed = OverridesParser.create().parse_overrides(list(self.overrides))
        return {override.key_or_group: override.value() for override in parsed}


def member(composed: DictConfig) -> Member:
    """The combination that Hydra is handing over just now."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    swept = hydra.mode == RunMode.MULTIRUN
    typed = [str(word) for word in OmegaConf.to_container(hydra.overrides.task, resolve=False) or ()]
    return Member(int(hydra.job.num) if swept else 0, Path(hydra.runtime.output_dir), swept, tuple(typed), composed)


def prepare(composed: DictConfig, overrides: Sequence[str]) -> Job:
    """Check and plan what Hydra composed from `overrides`. Raises Refused as `plan` does, or with all faults."""
    typed = [override.removeprefix("++") for override in overrides]
    return plan(check(composed, explicit(overrides)), typed)


def plan(checked: Checked, typed: Sequence[str]) -> Job:
    """Plan a checked configuration. Raises Refused where a stage must run and the store cannot take what it writes."""
    if checked.config["hardware"]["layerwise_casting"] is None:
        checked.config["hardware"]["layerwise_casting"] = casts_layerwise(checked.config)
        checked.origin["hardware.layerwise_casting"] = MACHINE
    store = Store(Path(checked.config["output"]) / ".store")
    fingerprints = Fingerprints(store.root / "fingerprints.json")
    if (unread := graph.unread(checked.config, fingerprints)) > 1 << 30:
        print(f"reading {unread / 1e9:.0f} GB of weights once, to know them again", file=sys.stderr)
    planned = graph.plan(checked.config, store, fingerprints)
    for note in notes.notes(checked.config, fingerprints):
        print(note, file=sys.stderr)
    if checked.compute.warning:
        print(checked.compute.warning, file=sys.stderr)
    fingerprints.save()
    if warning := short_of_memory(planned, checked.config):
        print(warning, file=sys.stderr)
    missing = [stage.stage for stage in planned if stage.action == "run"]
    if missing and checked.config["show"] is None and (why := store.writable()):
        expected = f"expected a store that can be written, since {', '.join(missing)} must run ({why})"
        raise Refused([Fault("output", expected, checked.config["output"])])
    if checked.config["show"] is None and (short := short_of_disk(planned, store)):
        raise Refused([short])
    return Job(checked, tuple(typed), store, fingerprints, planned)


def follow(job: Job, folder: Path, claimed: bool = False) -> Path | None:
    """Show the plan, and unless that is all that is asked for run it in `folder` (`claimed`: it is this run's alone),
    or with launch=print say what to type for that.

    Returns the run folder, None if nothing was to run. The page is written however the run ends. Raises RunFailed.
    """
    if job.config["show"]:
        measured = probe(job) if job.config["show"] == "estimate" else None
        terminal.show_plan(job.planned, job.checked, None, measured)
        return None
    run = folder if claimed else claim(folder)
    terminal.show_plan(job.planned, job.checked, run)
    try:
        job.write(run)
    except OSError as error:
        raise failed_here(run, "the desk", error) from error
    if job.config["launch"] == "print":
        print(*launch.lines(run, job.config), sep="\n")
        return None
    try:
        launch.launch(run, job.config)
    except OSError as error:
        raise failed_here(run, "the desk", error) from error
    finally:  # the page of a run that failed is the one that somebody needs most
        from runner.desk import report

        print(f"page     {try_page(report.write, run)}")
    return run


def claim(folder: Path, mark: str = "run.json") -> Path:
    """`folder`, or if another run was quicker `folder`-2 ..., with an empty file `mark` that makes it the caller's."""
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        candidate.mkdir(parents=True, exist_ok=True)
        try:
            (candidate / mark).touch(exist_ok=False)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there is always a next number")


def failed_here(folder: Path, what: str, error: Exception) -> launch.RunFailed:
    """What failed on this half, where no worker is there to say it: the traceback and status.json are in `folder`."""
    why, where = f"{type(error).__name__}: {error}", folder / "traceback.txt"
    with suppress(OSError):  # a full disk
        where.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        write_status(folder, "failed", error=why)
    return launch.RunFailed(what, why, where if where.exists() else folder)


def try_page(write: Callable[[Path], Path], folder: Path) -> str:
    """Write a page; where it is, or why it is not: a page that cannot be written costs no result."""
    try:
        return str(write(folder))
    except Exception as error:
        return f"not written: {type(error).__name__}: {error}"


def discard_if_empty(folder: Path) -> None:
    """Remove the folders that Hydra made for a run that did not come to be."""
    for empty in (folder, folder.parent, folder.parent.parent):
        try:
            empty.rmdir()
        except OSError:
            return
