"""Open-Sora 1.2 through the whole graph: worker processes on a tiny checkpoint in the released layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from support.finished import run

from runner.hardware.casting import DTYPES
from runner.hardware.compute import decide
from runner.recording.recording import Recording

# What readers of the GCU port's report find there.
PORT = {
    "performance_info": {
        "QPS", "model_load_time", "resolution", "aspect_ratio", "batch_size", "dtype", "scheduler", "fps", "num_frames",
        "num_sample", "denoising_steps", "seed", "device", "output_path", "warmup_count", "eval_count",
        "Avg infer time", "Avg single prompt infer time", "Avg single video save time",
    },
    "device_info": {"Dev Name", "Ver", "GCU CLK", "Mem CLK"},
    "deb_info": {"topsruntime", "tops-sdk", "tops-inference", "topsaten"},
    "python_info": {
        "python", "TopsInference", "torch", "diffusers", "transformers", "torch-gcu", "Pillow", "opencv-python",
    },
    "os_info": {"os_distrb_name", "os_kernel_version"},
    "cpu_info": {"cpu_arch", "cpu_model_name", "cpu_vendor"},
    "disk_info": {"disk_model"},
    "host_info": {"host_name", "host_ip"},
}  # fmt: skip


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
    assert calls[0]["y"].dtype == DTYPES[decide("auto", "cpu", "bf16").dtype] and calls[0]["fps"].tolist() == [8]


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


def test_a_benchmark_says_where_the_time_goes(tiny_opensora12: Path, outputs: Path) -> None:
    at = ["+recipe=opensora12_benchmark", f"model.checkpoint={tiny_opensora12}", "timing.warmup=1", "timing.repeats=2"]
    folder = run(outputs, *at, "prompts.text=[a boat, a tree]", "model.loop=2", "model.num_frames=34")
    measured = json.loads((folder / "measurements/benchmark.json").read_text())
    found = measured["performance_info"]
    assert PORT.keys() <= measured.keys() and all(PORT[section] <= measured[section].keys() for section in PORT)
    assert found["step_seconds"]["n"] == 2 * 2 * 2 * 2  # prompts, repeats, loops, steps
    assert found["frames_per_second"] == pytest.approx(2 * 51 / found["Avg infer time"])
    assert found["QPS"] == pytest.approx(1000 * found["frames_per_second"])
    parts = [found[f"{name}_seconds"] for name in ("text_encoding", "reference_encoding", "vae_decode")]
    steps = found["step_seconds"]["mean"] * 4
    assert all(part > 0 for part in parts) and sum(parts) + steps < found["Avg single prompt infer time"]
    assert found["Avg single prompt infer time"] + found["save_seconds"] < found["Avg infer time"] / 2 * 1.01
    assert (found["resolution"], found["scheduler"], found["num_frames"]) == ("32x48", "rflow", 34)
    assert len(list((folder / "benchmark/videos").glob("*.mp4"))) == 2
    assert not (folder / "sample").exists()


def test_a_cache_is_searched_counted_and_applied(tiny_opensora12: Path, outputs: Path) -> None:
    at = ["+recipe=opensora12_dit_cache", f"model.checkpoint={tiny_opensora12}", "prompts.text=a red boat"]
    folder = run(outputs, *at, "sampler.num_sampling_steps=5", "cache.ratio=1.05")
    found = json.loads((folder / "search-cache/search.json").read_text())
    plan = {row["stage"]: row for row in json.loads((folder / "plan.json").read_text())["stages"]}
    assert 0 < found["forwards"] <= plan["search-cache"]["forwards"] == 6 * 5
    assert found["blocks"] == 4 and found["verified"]
    metrics = json.loads((folder / "sample/metrics.json").read_text())
    assert (found["answer"] is not None) == ("cache" in metrics)
    assert metrics["prompts"][0]["latent_error"] < 0.5


def test_the_desk_counts_the_steps_of_a_warm_up() -> None:
    from runner.desk.plan import forwards
    from runner.stages import benchmark

    assert forwards.WARMUP_STEPS == benchmark.WARMUP_STEPS
