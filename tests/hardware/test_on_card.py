"""Whole runs on a card that holds its tensors apart from the host's, with all parts there and with parts in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crash_runs import entries
from model.diffusers.tiny import PIPELINES, save, spelled
from support.short_runs import results, run

from runner.generation.media import save_clip

pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch._C, "_acc", None), "register_python_privateuseone_hook"),
    reason="a backend in Python is what the stand-in is made of",
)
SAID = "a red circle moving right"
CACHED = ("cache=dit_cache", "cache.step_start=1", "cache.step_interval=2", "cache.block_start=1", "cache.num_blocks=1")


def on_card(device: str, *cases: tuple[Any, ...]) -> list[dict[str, Any]]:
    """What hardware.on_card says of each case."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    done = subprocess.run(
        [sys.executable, "-m", "hardware.on_card", device],
        input=json.dumps([list(map(str, case)) for case in cases]), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def both(device: str, folder: Path, *arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run with all parts on the card, and one with parts in turn."""
    cases = [(folder / offload, *arguments, f"hardware.offload={offload}") for offload in ("false", "true")]
    held, in_turn = on_card(device, *cases)
    assert not held["there"] and held["peak"] > in_turn["peak"]
    return held, in_turn


def assert_alike(held: dict[str, Any], in_turn: dict[str, Any]) -> None:
    wanted, found = (entries(Path(each["run"]).parent) for each in (held, in_turn))
    assert any(b"frames.safetensors" in manifest for manifest in wanted.values()) and found == wanted
    assert {len(parts) for parts in in_turn["there"]} == {1}, "one part at a time"


def brought(in_turn: dict[str, Any]) -> list[str]:
    """The parts in the order in which they came."""
    names = [parts[0] for parts in in_turn["there"]]
    return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


def test_parts_come_when_they_work_and_go_when_another_does(tiny_opensora12, reference_image, tmp_path):
    held, in_turn = both(
        "npu", tmp_path, "model=opensora12", f"model.checkpoint={tiny_opensora12}", "sample.compare=false",
        f"prompts.references=[{reference_image}]", "prompts.mask_strategy=['0']", "prompts.text=[a red boat]",
    )  # fmt: skip
    assert_alike(held, in_turn)
    assert brought(in_turn) == ["vae", "text_encoder", "transformer", "vae"], "the reference is encoded first"


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_foreign_pipelines(name, tmp_path):
    model = f"model={'sd3' if name == 'sd3' else 'diffusers'}", f"model.checkpoint={save(name, tmp_path)}"
    options = [f"model.{key}={spelled(value)}" for key, value in PIPELINES[name][1].items()]
    small = ("prompts.text=[a red boat]", "quant=w8a8", *CACHED, "sampler.num_sampling_steps=3", "timing.repeats=1")
    held, in_turn = both("npu", tmp_path / "runs", *model, *options, *small)
    assert_alike(held, in_turn)
    assert set(brought(in_turn)) >= {"text_encoder", "transformer", "vae"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("+recipe=osp12_stacked", "recording.steps=6", "sampler.num_sampling_steps=3"),
        ("+recipe=osp12_baseline", "quant=w8a8", "dump.format=pth", "sampler.num_sampling_steps=2"),
        ("+recipe=opensora12_dit_cache", "quant=w8a8", "sampler.num_sampling_steps=6"),
        ("+recipe=opensora12_extend", "sampler.num_sampling_steps=2"),
        ("+recipe=sd3_stacked", "recording.steps=6", "sampler.num_sampling_steps=3"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_searches_and_exports(arguments, tmp_path):
    """What is found depends on measured times, so that two runs may differ."""
    _, in_turn = both("npu", tmp_path, *arguments, f"prompts.text=[{SAID}]", f"prompts.calibration=[{SAID}]")
    assert {len(parts) for parts in in_turn["there"]} == {1}


@pytest.mark.slow
def test_videos_to_align_steps_on(tmp_path):
    """They are encoded outside of any generation."""
    clip = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "videos").mkdir()
    save_clip(clip, tmp_path / "videos" / "clip", fps=8)
    _, in_turn = both(
        "npu", tmp_path / "runs", "+recipe=osp12_schedule", "model.num_frames=5", "model.height=32", "model.width=32",
        "sampler.search=ays", f"sampler.videos_path={tmp_path / 'videos'}", "sampler.monte_carlo_iters=1",
        "sampler.num_sampling_steps=3", "recording.steps=6", f"prompts.text=[{SAID}]", "until=search-schedule",
        "sample.compare=false",
    )  # fmt: skip
    assert brought(in_turn)[:3] == ["vae", "text_encoder", "transformer"]


@pytest.mark.slow
def test_calls_of_ones_own_are_replayed(tiny_checkpoint, tmp_path):
    small = ("+recipe=osp12_w8a8", f"model.checkpoint={tiny_checkpoint}", "prompts.text=[a red boat]")
    (recorded,) = on_card("npu", (tmp_path / "recorded", *small, "dump.format=pth", "until=dump"))
    calls = Path(recorded["run"]) / "dump" / "calib_data.pth"
    held, in_turn = both("npu", tmp_path / "replayed", *small, f"dump.from={calls}", "timing.repeats=0")
    assert_alike(held, in_turn)


TORCH_NPU = """\
import torch
torch.utils.rename_privateuse1_backend("npu")
from hardware import vendors
from hardware.card import Card
vendors.install("npu", count=2)
Card("npu").__enter__()
"""


@pytest.mark.slow
def test_two_cards_give_what_one_does(tiny_checkpoint, tmp_path, monkeypatch):
    """Each process has a card of its own, and on the first the parts take turns."""
    (tmp_path / "torch_npu.py").write_text(TORCH_NPU)
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, tests, tests.parent))))
    on_npu = ("hardware=npu", "hardware.env={}", *CACHED)
    alone = run(tiny_checkpoint, tmp_path / "alone", *on_npu, "sampler.guidance_batch=separate")
    two = run(tiny_checkpoint, tmp_path / "two", *on_npu, "hardware.offload=true", "parallel=cfg2")
    assert "one branch of guidance is computed on rank 1" in (two / "run.log").read_text()
    assert results(two) == results(alone)


@pytest.mark.slow
def test_the_benchmark_tells_what_moving_took(tiny_opensora12, tmp_path):
    held, in_turn = both(
        "gcu", tmp_path, "+recipe=opensora12_benchmark", f"model.checkpoint={tiny_opensora12}", "timing.warmup=1",
        "timing.repeats=1", "prompts.text=[a boat]",
    )  # fmt: skip

    def seconds(run: str) -> dict[str, Any]:
        return json.loads((Path(run) / "measurements/benchmark.json").read_text())["performance_info"]

    assert_alike(held, in_turn)
    assert seconds(held["run"])["offload_seconds"] == 0.0
    told = seconds(in_turn["run"])
    phases = ("text_encoding_seconds", "vae_decode_seconds", "offload_seconds")
    whole = sum(told[phase] for phase in phases) + told["step_seconds"]["mean"] * told["step_seconds"]["n"]
    assert 0 < told["offload_seconds"] < told["Avg single prompt infer time"] and whole <= told["Avg infer time"]
