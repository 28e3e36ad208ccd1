"""What a quantization scheme asks for decides which stages a run has, and what their keys hold."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.desk.plan import graph
from runner.quant import rules
from runner.store.artifacts import Store
from runner.store.fingerprints import Fingerprints

TOY = rules.Scheme("quant.w8a16_toy", tag="W8A16-TOY", need="nothing")


def plan(config: dict[str, Any]) -> dict[str, graph.PlannedStage]:
    known = Fingerprints(Path("fingerprints.json"))
    return {stage.stage: stage for stage in graph.plan(config, Store(Path(".store")), known)}


def keys(config: dict[str, Any]) -> dict[str, str]:
    return {name: stage.key for name, stage in plan(config).items() if stage.action != "skip"}


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(config)
    section, _, name = key.partition(".")
    other[section][name] = value
    return other


@pytest.fixture
def toy(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(rules.SCHEMES, "w8a16_toy", TOY)
    return changed(config, "quant.scheme", "w8a16_toy")


def test_a_scheme_that_needs_no_recording_causes_none(toy: dict[str, Any]) -> None:
    rows = plan(changed(toy, "sample.compare", False))
    assert {name for name, row in rows.items() if row.action != "skip"} == {"quantize", "sample"}
    assert rows["quantize"].needs == () and rows["quantize"].forwards == 0
    compared = plan(toy)
    assert compared["dump"].lineage["prompts"].keys() == {"text"} and compared["calibrate"].action == "skip"
    assert compared["quantize"].key == rows["quantize"].key


def test_its_key_holds_the_choice_of_layers_and_nothing_of_observers(toy: dict[str, Any]) -> None:
    before = keys(toy)["quantize"]
    assert keys(changed(toy, "quant.include", ["*to_q"]))["quantize"] != before
    assert keys(changed(toy, "quant.exclude", []))["quantize"] != before
    for key, value in (("quant.observer", "mse"), ("prompts.calibration", ["other"]), ("prompts.text", ["other"])):
        assert keys(changed(toy, key, value))["quantize"] == before


def test_an_unusual_need_is_in_the_key_of_calibrate(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usual = plan(changed(toy, "quant.scheme", "w8a8"))
    assert "quant.scheme" not in usual["calibrate"].lineage["fields"]
    assert usual["quantize"].lineage["fields"].keys() == {"quant.scheme"}
    for scheme in (
        replace(TOY, need="range_by_step"),
        replace(TOY, need="range", levels=16),
        replace(TOY, need="range", symmetric=True),
    ):
        monkeypatch.setitem(rules.SCHEMES, "w8a16_toy", scheme)
        row = plan(toy)["calibrate"]
        assert row.lineage["fields"]["quant.scheme"] == "w8a16_toy" and row.key != usual["calibrate"].key
    monkeypatch.setitem(rules.SCHEMES, "w8a16_toy", replace(TOY, need="range"))
    assert plan(toy)["calibrate"].key == usual["calibrate"].key


def test_a_parameter_counts_for_the_schemes_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.SCHEMES, "w8a16_toy", replace(TOY, parameters=("group",)))
    assert rules.parameters() == ("quant.group",)
    assert rules.counts_in_quantize({"scheme": "w8a16_toy"}, "quant.group")
    assert not rules.counts_in_quantize({"scheme": "w8a8"}, "quant.group")
