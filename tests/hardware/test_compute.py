"""What a machine computes in, told from its processor's flags; and a run's plan, keys and repetition by it."""

from __future__ import annotations

import json

import pytest
from desk.conftest import front_door
from hydra.core.config_store import ConfigStore

from runner.desk.commands.rerun import _as_told
from runner.desk.plan import graph
from runner.desk.run.job import plan as plan_job
from runner.hardware import processor
from runner.hardware.compute import decide
from runner.store.artifacts import Store
from runner.store.fingerprints import Fingerprints
from runner.worker import agree

AVX2 = "fma avx2 bmi2"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq"
FLAGS = {
    "avx2": AVX2,
    "avx2_vnni": f"{AVX2} avx_vnni",
    "avx512": AVX512,
    "avx512_vnni": f"{AVX512} avx512_vnni",
    "avx512_bf16": f"{AVX512} avx512_vnni avx512_bf16",
    "amx": f"{AVX512} avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8",
    "other": "sse4_2",
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(line)`: the processor has this line of flags; None: the system does not tell."""

    def be(line: str | None) -> None:
        file = tmp_path / "cpuinfo"
        if line is not None:
            file.write_text(f"processor\t: 0\nmodel name\t: x\n{line}\nbugs\t: none\n")
        monkeypatch.setattr(processor, "CPUINFO", file)
        processor.flags.cache_clear()

    yield be
    monkeypatch.undo()
    processor.flags.cache_clear()


@pytest.mark.parametrize(("name", "flags"), FLAGS.items())
def test_a_processor_s_class_and_what_it_computes_in(machine, name, flags):
    machine(f"flags\t\t: {flags}")
    assert processor.processor_class() == name
    native = name in ("avx512_bf16", "amx")
    assert decide("auto", "cpu", "bf16").dtype == ("bf16" if native else "fp32")
    assert decide("auto", "cpu", "fp16").dtype == decide("auto", "cpu", "fp32").dtype == "fp32"
    for device in ("cuda", "npu", "gcu"):
        assert [decide("auto", device, dtype).dtype for dtype in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]
    assert (decide("bf16", "cpu", "bf16").warning is None) == native
    assert decide("fp16", "cpu", "fp16").warning and decide("fp32", "cuda", "bf16").warning
    assert (decide("fp32", "cpu", "bf16").warning is None) == (name != "amx")


def test_aarch64_has_a_feature_and_an_unknown_processor_none(machine):
    machine("Features\t: fp asimd bf16 i8mm")
    assert decide("auto", "cpu", "bf16").dtype == "bf16"
    machine("Features\t: fp asimd")
    assert decide("auto", "cpu", "bf16").dtype == "fp32"
    machine(None)
    assert processor.processor_class() == "other" and decide("auto", "cpu", "bf16").dtype == "fp32"


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """`keys(*arguments)`: the key of each stage, and the job."""
    monkeypatch.chdir(tmp_path)

    def keys_of(*arguments):
        checked = front_door("+recipe=osp12_w8a8", *arguments)
        ConfigStore.instance().repo.pop("recipe", None)
        planned = graph.plan(checked.config, Store(tmp_path / ".store"), Fingerprints(tmp_path / "known.json"))
        return {row.stage: row.key for row in planned if row.key}, checked

    return keys_of


def test_keys_hold_it_unless_it_is_what_the_weights_are(machine, keys):
    machine(f"flags\t: {FLAGS['amx']}")
    native, checked = keys()
    assert checked.config["hardware"]["compute"] == "bf16" and checked.origin["hardware.compute"] == "machine"
    machine(f"flags\t: {FLAGS['avx2']}")
    narrow, checked = keys()
    assert checked.config["hardware"]["compute"] == "fp32" and checked.origin["hardware.compute"] == "machine"
    assert "avx2" in checked.compute.why and checked.compute.warning is None
    obeyed, checked = keys("hardware.compute=bf16")
    assert checked.origin["hardware.compute"] == "command line" and "bf16" in checked.compute.warning
    assert obeyed == native and not set(native.values()) & set(narrow.values())


def test_a_rerun_repeats_it_and_a_run_from_before_the_key_computed_in_its_dtype(machine, keys, tmp_path):
    machine(f"flags\t: {FLAGS['avx2']}")
    _, checked = keys()
    told = {"config": checked.config, "origin": checked.origin, "checkpoint": {"embedded": True}}
    machine(f"flags\t: {FLAGS['amx']}")
    again, newer = _as_told(told, {}, tmp_path / "again")
    assert again.config["hardware"]["compute"] == "fp32" and again.origin["hardware.compute"] == "machine"
    assert not newer
    machine(f"flags\t: {FLAGS['avx2']}")
    del told["config"]["hardware"]["compute"], told["origin"]["hardware.compute"]
    again, _ = _as_told(told, {}, tmp_path / "again")
    assert again.config["hardware"]["compute"] == "bf16" and again.compute.warning


def test_memory_decides_whether_weights_are_cast_layer_by_layer(machine, keys, monkeypatch, capsys, tmp_path):
    machine(f"flags\t: {FLAGS['avx2']}")

    def job_with(memory: int, *arguments: str):
        facts = {"processor": "x", "cores": 2, "memory": memory, "accelerators": [], "system": "x"}
        monkeypatch.setattr("runner.store.machine.describe", lambda: facts)
        checked = front_door("+recipe=osp12_w8a8", f"output={tmp_path}", *arguments)
        ConfigStore.instance().repo.pop("recipe", None)
        return plan_job(checked, ())

    plenty, little = job_with(24 << 30), job_with(500_000_000)
    assert plenty.config["hardware"]["layerwise_casting"] is False
    assert little.config["hardware"]["layerwise_casting"] is True
    assert little.checked.origin["hardware.layerwise_casting"] == "machine"
    peak = [max(row.memory or 0 for row in job.planned) for job in (plenty, little)]
    assert peak[1] < peak[0] and [row.key for row in plenty.planned] == [row.key for row in little.planned]
    assert job_with(500_000_000, "hardware.layerwise_casting=false").config["hardware"]["layerwise_casting"] is False
    assert job_with(500_000_000, "hardware.compute=bf16").config["hardware"]["layerwise_casting"] is False
    assert "takes more than twice the time of fp32 on this avx2 processor" in capsys.readouterr().err


def test_ranks_that_would_decide_differently_are_refused(machine, monkeypatch):
    machine(f"flags\t: {FLAGS['amx']}")
    config = {"hardware": {"device": "cpu"}, "model": {"dtype": "bf16"}}
    told = json.loads(json.dumps({"config": config, "origin": {"hardware.compute": "machine"}}))
    monkeypatch.setattr("runner.hardware.mesh.gather", lambda mine: [mine, "bf16"])
    agree(told)
    monkeypatch.setattr("runner.hardware.mesh.gather", lambda mine: [mine, "fp32"])
    with pytest.raises(RuntimeError, match="rank 0 in bf16, rank 1 in fp32.*set hardware.compute"):
        agree(told)
    agree({**told, "origin": {"hardware.compute": "command line"}})
