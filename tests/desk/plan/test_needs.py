"""What a stage needs of disk and memory, told before anything runs, against what it then took."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from runner.__main__ import door
from runner.desk.plan import needs
from runner.desk.plan.graph import plan
from runner.desk.plan.needs import Needs
from runner.model.headers import sizes
from runner.recording.statistics import BINS
from runner.store.artifacts import Store
from runner.store.fingerprints import Fingerprints

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(monkeypatch):
    """Have the disk say that so much of it is free."""
    return lambda free: monkeypatch.setattr(needs.shutil, "disk_usage", lambda place: Usage(free, 0, free))


def test_a_histogram_has_the_bins_that_are_counted():
    assert needs.BINS == BINS


def test_disk_too_small_is_said_before_anything_runs(tiny_checkpoint, disk, capsys):
    disk(1000)
    arguments = ["+recipe=osp12_w8a8", f"model.checkpoint={tiny_checkpoint}"]
    assert door(arguments) == 2
    said = capsys.readouterr().err
    assert "output = " in said and "free (dump " in said and "there are 1.00 kB" in said
    assert not [path for path in Path("outputs").rglob("run.json")]
    assert door([*arguments, "show=plan"]) == 0


def test_finished_parts_need_no_space_again(config, disk):
    store = Store(Path("outputs/.store"))
    planned = plan(config, store, Fingerprints(Path("known.json")))
    needed = sum(row.disk for row in planned if row.disk)
    disk(needed)
    assert needs.short_of_disk(planned, store) is None
    disk(needed - 1000)
    assert needs.short_of_disk(planned, store) is not None
    dump = next(row for row in planned if row.stage == "dump")
    (store.draft("dump", dump.key) / "prompt-000").mkdir()
    (store.draft("dump", dump.key) / "prompt-000" / "frames.safetensors").write_bytes(bytes(1000))
    assert needs.short_of_disk(planned, store) is None


@pytest.mark.parametrize(("there", "device", "warned"), [(1, "cpu", True), (0, "cpu", False), (1, "cuda", False)])
def test_more_memory_than_there_is_is_said(config, monkeypatch, there, device, warned):
    monkeypatch.setattr(needs.machine, "describe", lambda: {"memory": there})
    config["hardware"]["device"] = device
    said = needs.short_of_memory(plan(config, Store(Path("store")), Fingerprints(Path("known.json"))), config)
    assert (said is not None) == warned and (not warned or "takes about" in said)


def test_open_sora_12_is_told_of_too(opensora12, disk, monkeypatch):
    """A loop goes on from the last frames of the one before, which are not shown again."""

    def planned(*arguments: str) -> tuple[dict, list]:
        config = opensora12("quant=w8a8", *arguments).config
        return config, plan(config, Store(Path("store")), Fingerprints(Path("known.json")))

    config, rows = planned()
    disk(1000)
    assert all(row.disk and row.memory for row in rows if row.stage in ("dump", "quantize", "sample"))
    assert "free (dump " in needs.short_of_disk(rows, Store(Path("store"))).expected
    monkeypatch.setattr(needs.machine, "describe", lambda: {"memory": 1})
    assert "takes about" in needs.short_of_memory(rows, config)
    looped, _ = planned("model.loop=3", "model.num_frames=34")
    shapes = Needs(looped).shapes
    assert shapes.frames[0] == 34 + 2 * (34 - 17) and shapes.latents[1] == 10 and shapes.whole_latents


def test_what_is_reused_needs_no_space(config, disk):
    store = Store(Path("outputs/.store"))
    for row in plan(config, store, Fingerprints(Path("known.json"))):
        if row.action == "run":
            store.commit(store.draft(row.does, row.key), row.does, row.key)
    disk(0)
    assert needs.short_of_disk(plan(config, store, Fingerprints(Path("known.json"))), store) is None


def test_jobs_together_need_what_they_do_not_share(config, disk):
    store, known = Store(Path("outputs/.store")), Fingerprints(Path("known.json"))
    one, same, other = (plan({**config, "seed": seed}, store, known) for seed in (1, 1, 2))
    disk(3 * sum(row.disk for row in one if row.disk) // 2)
    assert needs.short_of_disk([*one, *same], store) is None
    short = needs.short_of_disk([*one, *other], store)
    assert short is not None and short.expected.count("dump ") == 1


def test_more_of_anything_needs_more(config):
    def of(key: str, value: object) -> tuple[int, int]:
        section, _, name = key.partition(".")
        altered = {**config, section: {**config[section], name: value}}
        found, prompts = Needs(altered), {"calibration": ["a"], "text": ["b"]}
        return found.disk("dump", altered, prompts), found.memory("dump", altered)

    small = of("model.num_frames", 9)
    assert of("sampler.num_sampling_steps", 30)[0] > 5 * small[0] / 2 and of("dump.format", "pth")[0] > small[0]
    assert all(large > before for large, before in zip(of("model.height", 512), small, strict=True))
    assert of("hardware.offload", True)[1] < small[1]
    assert of("parallel.world_size", 2)[1] == pytest.approx(2 * small[1], abs=2)
    assert of("model.batch_size", 4)[1] > small[1] and of("hardware.compute", "fp32")[1] > small[1]


def test_the_released_size(config, tmp_path):
    """Of 93x720p in bf16: 2,771,907,856 parameters are 5.5 GB, and half of it when quantized."""
    released = tmp_path / "93x720p"
    released.mkdir()
    (released / "config.json").write_text(json.dumps({"_class_name": "OpenSoraT2V"}))
    linears = {
        f"blocks.{n}.to_q.weight": {"dtype": "BF16", "shape": [2304, 1203100], "data_offsets": [0, 0]} for n in "1"
    }
    head = json.dumps(linears).encode()
    (released / "diffusion_pytorch_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    model = {**config["model"], "checkpoint": str(released), "num_frames": 93, "height": 720, "width": 1280}
    altered = {**config, "model": {**model, "dtype": "bf16", "enable_tiling": True}}
    found = Needs(altered)
    assert found.shapes.latents == (4, 24, 90, 160)
    assert found.disk("quantize", altered, {}) == pytest.approx(2304 * 1203100, rel=0.06)
    assert 5.5e9 < found.memory("sample", altered) < 40e9
    calls = config["sampler"]["num_sampling_steps"] * 4 * 24 * 90 * 160 * 2 * 4  # two branches, latents, prediction
    frames = 93 * 720 * 1280 * 3
    assert found.disk("dump", altered, {"calibration": ["a"]}) == pytest.approx(calls + 1.05 * frames, rel=0.1)


@pytest.mark.parametrize("does", ["quantize", "sample", "benchmark"])
def test_weights_that_kernels_keep_in_float_are_counted_where_int8_may_saturate(config, monkeypatch, does):
    def on(flags: set[str], device: str = "cpu") -> int:
        monkeypatch.setattr(needs.cost.processor, "flags", lambda: frozenset(flags))
        hardware, quant = {**config["hardware"], "device": device}, {**config["quant"], "scheme": "w8a8"}
        altered = {**config, "hardware": hardware, "quant": quant}
        return Needs(altered).memory(does, altered)

    assert on({"avx2", "avx_vnni"}) == on({"i8mm"}) < on({"avx2"}) == on(set())
    assert on({"avx2"}, "cuda") == on({"i8mm"}, "cuda")


def test_a_place_on_the_hub_tells_nothing(config):
    config["model"] |= {"checkpoint": "somebody/weights", "revision": "abc"}
    found = Needs(config)
    assert found.disk("dump", config, {"text": ["a"]}) is None and found.memory("dump", config) is None


@pytest.mark.parametrize("content", [b"", b"no head at all", (1 << 60).to_bytes(8, "little"), b"\2\0\0\0\0\0\0\0{]"])
def test_weights_without_a_head_count_by_their_size(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert list(sizes(tmp_path / "a.safetensors")) == [("", (len(content) // 4,))]


@pytest.mark.slow
@pytest.mark.parametrize("side", [64, 512])
def test_memory_is_about_what_was_told(side, tmp_path):
    """On the shipped weights: the worker's own peak, within a third."""
    arguments = [f"model.height={side}", f"model.width={side}", "sampler.num_sampling_steps=2", "sample.judge=none"]
    said = ["+recipe=osp12_float", *arguments, "prompts.text=a red circle moving left", "sample.compare=false"]
    assert door([*said, f"output={tmp_path}"]) == 0
    (run,) = (tmp_path / "osp12_float").iterdir()
    (row,) = [row for row in json.loads((run / "plan.json").read_text())["stages"] if row["action"] == "run"]
    measured = json.loads((run / "measurements" / "sample.json").read_text())["peak_memory_bytes"]
    assert row["memory"] == pytest.approx(measured, rel=0.35)
    shutil.rmtree(tmp_path)
