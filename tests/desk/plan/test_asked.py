"""until= and redo=: where a plan stops, and what it makes again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runner.config.faults import Refused
from runner.desk.plan import graph
from runner.store.artifacts import Store
from runner.store.fingerprints import Fingerprints


def plan(config) -> dict[str, graph.PlannedStage]:
    store = Store(Path(".store"))
    return {row.stage: row for row in graph.plan(config, store, Fingerprints(store.root / "fingerprints.json"))}


def store_all(config) -> None:
    store = Store(Path(".store"))
    for row in plan(config).values():
        if row.action != "skip":
            draft = store.draft(row.does, row.key)
            (draft / "made").write_text(row.stage)
            store.commit(draft, row.does, row.key)


def actions(config) -> dict[str, str]:
    return {name: row.action for name, row in plan(config).items()}


def test_until_stops_after_its_stage(config):
    whole = plan(config)
    short = plan({**config, "until": "calibrate"})
    assert [name for name, row in short.items() if row.action == "run"] == ["dump", "calibrate"]
    assert short["sample"].reason == "after until=calibrate" and short["sample"].forwards == whole["sample"].forwards
    assert [short[name].key for name in ("dump", "calibrate")] == [whole[name].key for name in ("dump", "calibrate")]


def test_until_the_last_stage_is_the_whole_run(config):
    assert plan({**config, "until": "sample"}).keys() == plan(config).keys()
    assert actions({**config, "until": "sample"}) == actions(config)


def test_redo_makes_a_stage_again_and_what_builds_on_it(config):
    store_all(config)
    assert set(actions(config).values()) == {"reuse", "skip"}
    before = time.time()
    again = plan({**config, "redo": "calibrate"})
    assert again["dump"].action == "reuse"
    assert [name for name, row in again.items() if row.action == "run"] == ["calibrate", "quantize", "sample"]
    assert {name: row.key for name, row in again.items()} == {name: row.key for name, row in plan(config).items()}
    assert again["calibrate"].reason == "asked for by redo"
    assert again["quantize"].reason == "builds on calibrate, made again"
    assert again["dump"].redo is None and before <= again["sample"].redo <= time.time()


def test_redo_takes_a_list_and_the_last_stage_alone(config):
    store_all(config)
    assert [name for name, action in actions({**config, "redo": ["sample"]}).items() if action == "run"] == ["sample"]
    both = plan({**config, "redo": ["quantize", "sample"]})
    assert [row.reason for row in both.values() if row.action == "run"] == ["asked for by redo"] * 2


def test_redo_and_until_go_together(config):
    store_all(config)
    asked = {**config, "redo": ["calibrate"], "until": "calibrate"}
    assert [name for name, action in actions(asked).items() if action == "run"] == ["calibrate"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"redo": "search-cache"}, "redo = 'search-cache': has no part in this run: nothing to do in this run"),
        ({"redo": ["sample"], "until": "dump"}, "redo = 'sample': has no part in this run: after until=dump"),
    ],
)
def test_what_has_no_part_in_the_run_cannot_be_made_again(config, asked, says):
    with pytest.raises(Refused, match=says):
        plan({**config, **asked})


def test_the_table_and_the_folder_say_so(checked):
    """Whole: the second run makes calibrate again, and all that follows, and the results are the same bytes."""
    from runner.__main__ import door

    base = ["+recipe=osp12_w8a8", f"model.checkpoint={checked().checkpoint.path}", "sample.compare=false"]
    base += ["prompts.text=a red boat", "sampler.num_sampling_steps=2", "timing.repeats=0"]
    assert door([*base, "name=first"]) == 0 and door([*base, "name=again", "redo=calibrate"]) == 0
    (first,), (again,) = (list(Path("outputs", name).iterdir()) for name in ("first", "again"))
    for file, kept in (
        ("dump/prompt-000/latents.safetensors", True),
        ("calibrate/ranges.json", False),
        ("quantize/quant_model_weight_w8a8.safetensors", False),
    ):
        one, two = first / file, again / file
        assert (one.stat().st_ino == two.stat().st_ino) is kept and one.read_bytes() == two.read_bytes()
    assert not (again / ".calibrate.part").exists()
