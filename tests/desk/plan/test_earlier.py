"""The reason of a stage that runs: what changed since the nearest earlier run."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from runner.desk.plan import earlier, graph
from runner.store.artifacts import Store
from runner.store.fingerprints import Fingerprints


@pytest.fixture
def store() -> Store:
    return Store(Path(".store"))


def plan(config, store: Store) -> dict[str, graph.PlannedStage]:
    return {row.stage: row for row in graph.plan(config, store, Fingerprints(store.root / "fingerprints.json"))}


def run(config, store: Store) -> None:
    """What a finished run leaves in the store, without its work."""
    for row in plan(config, store).values():
        if row.action != "skip":
            store.write_lineage(row.does, row.key, {**row.lineage, "code": {"commit": "c"}})
            draft = store.draft(row.does, row.key)
            (draft / "made").write_text(row.stage)
            store.commit(draft, row.does, row.key)


def changed(config, **values):
    other = copy.deepcopy(config)
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (other[section] if section else other)[name] = value
    return other


def reasons(config, store: Store) -> dict[str, str]:
    return {name: row.reason for name, row in plan(config, store).items() if row.action == "run"}


def test_the_first_run_has_no_earlier_one(config, store):
    assert set(reasons(config, store).values()) == {"not stored yet"}


def test_the_changed_field_is_named(config, store):
    run(config, store)
    assert reasons(changed(config, quant__observer="mse"), store) == {
        "calibrate": "quant.observer minmax → mse",
        "quantize": "builds on another calibrate",
        "sample": "builds on another quantize",
    }
    assert reasons(changed(config, seed=5, sampler__num_sampling_steps=4), store)["dump"] == (
        "seed 1234 → 5, sampler.num_sampling_steps 3 → 4"
    )
    many = reasons(changed(config, seed=5, model__fps=9, model__batch_size=2, model__dtype="fp16"), store)["dump"]
    assert (
        many == "seed 1234 → 5, model.dtype bf16 → fp16 and 3 more"
    )  # and what is computed in is no longer what the weights are


def test_prompts_and_weights_and_torch(config, store, monkeypatch):
    run(config, store)
    other = copy.deepcopy(config)
    other["prompts"]["text"] = ["a red boat", "a blue house", "a third"]
    assert reasons(other, store)["dump"] == "prompts.text 2 → 3"
    other["prompts"]["text"] = ["a red boat", "a third"]
    assert reasons(other, store)["dump"] == "prompts.text changed"
    monkeypatch.setattr(graph, "torch_release", lambda: "9.9")
    assert reasons(config, store)["dump"].endswith("→ 9.9")


def test_other_weights_are_named_by_their_part(config, store, tmp_path):
    import shutil

    run(config, store)
    shutil.copytree(config["model"]["vae"], tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text((tmp_path / "vae" / "config.json").read_text() + "\n")
    assert reasons(changed(config, model__vae=str(tmp_path / "vae")), store)["dump"] == "weights of vae changed"


def test_the_nearest_run_speaks_and_of_equal_ones_the_latest(config, store):
    for seed, steps, age in ((1, 3, 30), (2, 3, 20), (3, 9, 10)):
        run(changed(config, seed=seed, sampler__num_sampling_steps=steps), store)
        for file in store.lineages.iterdir():
            os.utime(file, (1e9 - age, 1e9 - age)) if file.stat().st_mtime > 1e9 else None
    assert reasons(changed(config, seed=4), store)["dump"] == "seed 2 → 4"
    assert reasons(changed(config, seed=4, sampler__num_sampling_steps=9), store)["dump"] == "seed 3 → 4"


def test_what_was_begun_and_not_finished_says_so(config, store):
    row = plan(config, store)["dump"]
    store.write_lineage("dump", row.key, row.lineage)
    assert reasons(config, store)["dump"] == "begun before and not finished, or pruned since"


def test_unreadable_lineages_are_passed_over(config, store):
    store.lineages.mkdir(parents=True)
    for number, content in enumerate(("", "[]", "{", '{"fields": {}, "prompts": {}}')):
        (store.lineages / f"dump-{number:016x}.json").write_text(content)
    assert "is new" in reasons(config, store)["dump"]


def test_lineages_of_a_stage_whose_name_begins_alike_are_not_mixed_up(store):
    store.write_lineage("search-cache", "0" * 16, {"stage": "search-cache"})
    assert list(earlier._lineages(store.lineages, "search")) == []


def test_a_plan_reads_no_more_than_the_recent_ones(config, store, monkeypatch):
    monkeypatch.setattr(earlier, "MOST_RECENT", 2)
    for seed in range(5):
        run(changed(config, seed=seed), store)
        for file in store.lineages.iterdir():
            os.utime(file, (seed, seed)) if file.stat().st_mtime > 1e6 else None
    assert len(list(earlier._lineages(store.lineages, "dump"))) == 2
    assert reasons(changed(config, seed=9), store)["dump"] == "seed 4 → 9"
