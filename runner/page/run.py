"""A run folder as one value. What is missing or broken in it is said in `Run.gaps`, never raised: the page of a run
that failed, or is still under way, is the page that somebody needs most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.page.files import Entry
from runner.page.values import Reader, mapping, rows


@dataclass(frozen=True)
class Stage:
    """A line of the plan and what became of it. `state`: done, reused, skipped, running, failed or waiting."""

    name: str
    state: str
    reason: str
    writes: str
    seconds: float | None


@dataclass(frozen=True)
class Clip:
    """One prompt: its float and its changed clip as paths relative to the run folder, and its row of metrics.json."""

    prompt: str
    seed: int | None
    reference: str | None
    result: str | None
    figures: Mapping[str, Any]

    @property
    def picture(self) -> str | None:
        """Whatever there is to look at."""
        return self.result or self.reference


@dataclass(frozen=True)
class Run:
    """Everything that a page says about a run.

    Mappings are JSON as it was read: `metrics` is sample/metrics.json, `measured` and `recorded` are the measurements
    of sample and of the reference's dump. What a technique's stages left is read when its rows ask for it (`of_stage`,
    `rows_of_stage`). `arm` names what is compared with the float reference ("W8A8 + DiT cache"), None for a run that
    changes nothing; `changes` the same of what changes a single call of the transformer.
    """

    folder: Path
    name: str
    created: str
    command: Sequence[str]
    config: Mapping[str, Any]
    origin: Mapping[str, str]
    checkpoint: Mapping[str, Any]
    state: str
    error: str | None
    failed_stage: str | None
    traceback: str | None
    seconds: float | None
    stages: Sequence[Stage]
    made: frozenset[str]  # the stages whose files are there
    clips: Sequence[Clip]
    contact_sheet: str | None
    contact_sheet_size: tuple[int, int] | None
    metrics: Mapping[str, Any]
    measured: Mapping[str, Any]
    recorded: Mapping[str, Any]
    files: Entry
    provenance: Mapping[str, Any]
    rerun: Mapping[str, Any]
    reader: Reader
    arm: str | None = None
    changes: str | None = None
    _read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def summary(self) -> Mapping[str, Any]:
        """The comparison over all clips."""
        return mapping(self.metrics.get("summary"))

    @property
    def gaps(self) -> Sequence[str]:
        """What could not be read, a sentence each."""
        return self.reader.gaps

    def of_stage(self, stage: str, file: str) -> Mapping[str, Any]:
        """A JSON object that a stage left in its folder; a gap where the stage is over and it is not there."""
        path = f"{stage}/{file}"
        if path not in self._read:
            self._read[path] = self.reader.mapping(path, expected=stage in self.made)
        return mapping(self._read[path])

    def rows_of_stage(self, stage: str, file: str) -> Sequence[Mapping[str, Any]]:
        """The same of a list of objects."""
        path = f"{stage}/{file}"
        if path not in self._read:
            self._read[path] = self.reader.rows(path, expected=stage in self.made)
        return rows(self._read[path])

    def measurements(self, stage: str) -> Mapping[str, Any]:
        """What was measured while a stage ran, if that is known."""
        path = f"measurements/{stage}.json"
        if path not in self._read:
            self._read[path] = self.reader.mapping(path, expected=False)
        return mapping(self._read[path])
