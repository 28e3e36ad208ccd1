"""A store that commit 898323e made is reused whole: what is moved and renamed since has changed no key and no file.

tests/data/store_898323e.tar.gz is what that commit left in outputs/.store (artifacts, lineages, measurements) after
`python -m runner` with `ARGUMENTS` on the tiny checkpoint: float32, two steps, one prompt. A result that is meant to
change raises its stage's version and is then named here with the reason.
"""

from __future__ import annotations

import json
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from runner.__main__ import door
from runner.desk.plan import graph
from runner.store import machine
from runner.store.artifacts import Store
from runner.store.fingerprints import Fingerprints

ARCHIVE = Path(__file__).parents[1] / "data" / "store_898323e.tar.gz"
ARGUMENTS = (
    *("+recipe=osp12_w8a8", "hardware.compute=fp32", "sampler.num_sampling_steps=2", "prompts.text=[a red boat]"),
    *("cache=dit_cache", "cache.ratio=1.05"),
)
STAGES = ("dump", "calibrate", "quantize", "search-cache", "sample")


@pytest.fixture
def old(own_folder: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The store, unpacked where a run here looks for it, on the machine and with the torch that made it; by stage, what
    each key is a hash of."""
    store = Path("outputs/.store")
    store.mkdir(parents=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(store, filter="data")
    lineages = [json.loads(file.read_text()) for file in (store / "lineage").iterdir()]
    found = {lineage["stage"]: lineage for lineage in lineages}
    identity, (release,) = found["search-cache"]["machine"], {lineage["torch"] for lineage in lineages}
    installed = metadata.version
    monkeypatch.setattr(machine, "identity", lambda: identity)
    monkeypatch.setattr(metadata, "version", lambda name: f"{release}.0" if name == "torch" else installed(name))
    return found


def planned(checked: Any, *arguments: str) -> dict[str, graph.PlannedStage]:
    store = Path("outputs/.store")
    config = checked(*ARGUMENTS, *arguments).config
    rows = graph.plan(config, Store(store), Fingerprints(store / "fingerprints.json"))
    return {row.stage: row for row in rows if row.action != "skip"}


def test_it_is_small_and_names_no_place() -> None:
    assert ARCHIVE.stat().st_size < 2_000_000
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", ""), member.name
            if member.name.endswith(".json"):
                file = archive.extractfile(member)
                content = file.read() if file else b""
                assert content and not any(place in content for place in (b'"/', b"/home/", b"/tmp/")), member.name


def test_every_stage_is_planned_as_reused(old, checked) -> None:
    rows = planned(checked)
    assert tuple(rows) == STAGES and old.keys() == set(STAGES)
    told = {name: (row.action, row.reason) for name, row in rows.items() if row.action != "reuse"}
    assert not told, "\n".join(f"{name}: {reason}" for name, (_, reason) in told.items())
    for name, row in rows.items():
        was = {key: value for key, value in old[name].items() if key != "code"}
        assert row.lineage == was, name


@pytest.mark.parametrize(
    ("argument", "runs"),
    [("seed=5", STAGES), ("quant.observer=mse", STAGES[1:]), ("cache.ratio=1.1", STAGES[3:])],
)
def test_another_value_makes_what_depends_on_it_anew(old, checked, argument, runs) -> None:
    rows = planned(checked, argument)
    assert tuple(name for name, row in rows.items() if row.action == "run") == runs


def test_on_another_machine_its_search_is_made_anew(old, checked, monkeypatch) -> None:
    monkeypatch.setattr(machine, "identity", lambda: "another")
    assert [name for name, row in planned(checked).items() if row.action == "run"] == ["search-cache", "sample"]


def test_a_run_links_it_all_and_starts_no_worker(journal, old, at) -> None:
    assert door([*ARGUMENTS, at]) == 0
    assert not journal.exists(), "a worker was started"
    (run,) = (file.parent for file in Path("outputs/osp12_w8a8").glob("*/run.json"))
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    rows = json.loads((run / "plan.json").read_text())["stages"]
    assert {row["stage"]: row["action"] for row in rows if row["action"] != "skip"} == dict.fromkeys(STAGES, "reuse")
    for name in STAGES:
        (entry,) = Path("outputs/.store").glob(f"{name}-*")
        files = json.loads((entry / "manifest.json").read_text())["files"]
        assert files and all((run / name / file).samefile(entry / file) for file in files), name
        assert (run / "measurements" / f"{name}.json").is_file(), name
    assert (run / "report.html").stat().st_size > 0
