"""Open-Sora 1.2 through the whole graph: worker processes on a tiny checkpoint in the released layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from runner.recording import Recording


def run(outputs: Path, *arguments: str, env: dict[str, str] | None = None) -> Path:
    """One run by the front door; its folder."""
    done = subprocess.run(
        [sys.executable, "-m", "runner", f"output={outputs}", *arguments],
        capture_output=True, text=True, env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(next(line for line in done.stdout.splitlines() if line.startswith("run ")).split()[1])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def quantized(tiny_opensora12: Path, outputs: Path) -> Path:
    return run(outputs, "+recipe=opensora12_w8a8", f"model.checkpoint={tiny_opensora12}", "timing.repeats=1")


def test_w8a8_of_both_kinds_of_blocks(quantized: Path) -> None:
    described = json.loads((quantized / "quantize/quant_model_description_w8a8.json").read_text())
    int8 = {key.rpartition(".")[0] for key, value in described.items() if value == "W8A8" and key.endswith(".weight")}
    for kind in ("spatial_blocks", "temporal_blocks"):
        linears = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.fc1")
        assert {f"{kind}.1.{name}" for name in linears} <= int8
    assert not any(name.endswith("mlp.fc2") or name.startswith(("t_block", "final")) for name in int8)
    metrics = json.loads((quantized / "sample/metrics.json").read_text())
    assert metrics["ledger"]["int8_share"] > 0.5 and len(metrics["prompts"]) == 2
    assert metrics["summary"]["psnr_db"]["median"] > 20
    assert len(list((quantized / "sample/videos").glob("*.mp4"))) == 2


def test_the_recording_is_the_generation(quantized: Path) -> None:
    recording = Recording(quantized / "dump")
    (part,) = recording.parts("calibration")
    calls = list(recording.calls(part))
    assert [float(call["timestep"][0]) for call in calls] == pytest.approx(
        [s.timestep for s in recording.trajectory(part)]
    )
    assert calls[0]["y"].dtype == torch.bfloat16 and calls[0]["fps"].tolist() == [8]


def test_the_first_frame_is_kept_through_the_run(tiny_opensora12: Path, outputs: Path, tmp_path: Path) -> None:
    Image.new("RGB", (48, 32), "red").save(tmp_path / "first.png")
    at = ["+recipe=opensora12_i2v", f"model.checkpoint={tiny_opensora12}", "prompts.text=a red boat"]
    given = [f"prompts.references={tmp_path}/first.png", "sampler.num_sampling_steps=1"]
    with_image, other_seed = run(outputs, *at, *given), run(outputs, *at, *given, "seed=43")
    first, second = (
        load_file(r / "sample/prompt-000/latents.safetensors")["latents"] for r in (with_image, other_seed)
    )
    assert first.shape == (1, 4, 5, 4, 6)
    # The image is encoded with a draw of each seed; its frame is far nearer between seeds than the generated ones.
    apart = (first - second).float().pow(2).mean(dim=(0, 1, 3, 4))
    assert apart[0] < 0.2 * apart[1:].min()
    assert "first.png" in json.loads((with_image / "sample/prompts.json").read_text())[0]["prompt"]


def test_two_clips_become_one_video(tiny_opensora12: Path, outputs: Path) -> None:
    at = f"model.checkpoint={tiny_opensora12}"
    folder = run(outputs, "+recipe=opensora12_extend", at, "model.num_frames=34", "model.loop=2", "prompts.text=a boat")
    frames = load_file(folder / "sample/prompt-000/frames.safetensors")["frames"]
    assert frames.shape == (34 + 17, 32, 48, 3)
