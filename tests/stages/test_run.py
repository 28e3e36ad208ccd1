"""The whole spine on a small random checkpoint in the released layout: what the run folder holds, and that it holds."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.command import run, run_folder

from runner.quant import export
from runner.recording.recording import Recording


@pytest.fixture(scope="module")
def outputs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("outputs")
    done = run(
        output,
        "+recipe=osp12_w8a8",
        f"model.checkpoint={tiny_checkpoint}",
        "model.dtype=fp32",
        "dump.format=pth",
        "timing.repeats=2",
        f"quant.folder={output / 'weights'}",
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def quantized(outputs: Path) -> Path:
    return run_folder(outputs, "osp12_w8a8")


def test_the_folder_is_whole(quantized: Path) -> None:
    for name in (
        "dump/videos/prompt-001.mp4",
        "dump/prompt-000/statistics.safetensors",
        "dump/calib_data.pth",
        "calibrate/ranges.json",
        "quantize/quant_model_description_w8a8.json",
        "quantize/layers.json",
        "sample/videos/prompt-001.mp4",
        "sample/contact_sheet.png",
        "sample/metrics.json",
        "measurements/sample.json",
        "run.log",
        "report.html",
    ):
        assert (quantized / name).stat().st_size > 0, name
    assert json.loads((quantized / "status.json").read_text())["state"] == "done"


def test_the_export_has_the_mode_that_runtimes_ask_for(quantized: Path, outputs: Path) -> None:
    for folder in (quantized / "quantize", outputs / "weights"):
        files = list(folder.glob("quant_model_*"))
        assert len(files) == 2, folder  # weights and their description
        for file in files:
            assert stat.S_IMODE(file.stat().st_mode) == 0o640, file


def test_the_model_was_called_as_often_as_planned(quantized: Path) -> None:
    plan = {stage["stage"]: stage for stage in json.loads((quantized / "plan.json").read_text())["stages"]}
    recording = Recording(quantized / "dump")
    (calibration,) = recording.parts("calibration")
    assert len(list(recording.calls(calibration))) == 3
    assert plan["dump"]["forwards"] == 9 and plan["sample"]["forwards"] == 6 + 1 + 2 * 3


def test_ranges_are_the_true_extremes_of_the_recording(quantized: Path) -> None:
    ranges = json.loads((quantized / "calibrate" / "ranges.json").read_text())
    statistics = Recording(quantized / "dump").statistics()
    for name, ends in ranges["layers"].items():
        assert ends["minimum"] == min(0.0, float(statistics[name].minimum.min()))
        assert ends["maximum"] == max(0.0, float(statistics[name].maximum.max()))
    assert set(ranges["kept_float"].values()) == {"*net.2*", "*adaln_single*", "proj_out"}


def test_every_linear_is_accounted_for(quantized: Path) -> None:
    layers = json.loads((quantized / "quantize" / "layers.json").read_text())
    _, description = export.load(quantized / "quantize")
    names = {
        key.removesuffix(".weight") for key, tag in description.items() if tag == "W8A8" and key.endswith(".weight")
    }
    assert {layer["layer"] for layer in layers if layer["quantized"]} == names
    ratios = [layer["snr_db"] for layer in layers if layer["quantized"]]
    assert ratios == sorted(ratios) and ratios[0] > 20


def test_the_ledger_is_the_layer_table(quantized: Path) -> None:
    ledger = json.loads((quantized / "sample" / "metrics.json").read_text())["ledger"]
    ranges = json.loads((quantized / "calibrate" / "ranges.json").read_text())
    assert ledger["int8_matmuls"] == len(ranges["layers"])
    assert 0.5 < ledger["int8_share"] < 1


def test_metrics_compare_the_same_prompts_and_seeds(quantized: Path) -> None:
    metrics = json.loads((quantized / "sample" / "metrics.json").read_text())
    assert [row["prompt"] for row in metrics["prompts"]] == ["a red boat", "a blue house"]
    dumped = {(p["prompt"], p["seed"]) for p in json.loads((quantized / "dump" / "prompts.json").read_text())}
    for row, prompt in zip(
        metrics["prompts"], json.loads((quantized / "sample" / "prompts.json").read_text()), strict=True
    ):
        assert (prompt["prompt"], prompt["seed"]) in dumped
        reference = next(
            p
            for p in json.loads((quantized / "dump" / "prompts.json").read_text())
            if "text" in p["roles"] and p["index"] == prompt["index"]
        )
        a = load_file(quantized / "dump" / reference["folder"] / "frames.safetensors")["frames"].double()
        b = load_file(quantized / "sample" / prompt["folder"] / "frames.safetensors")["frames"].double()
        assert row["psnr_db"] == pytest.approx(10 * np.log10(255**2 / float(((a - b) ** 2).mean())), abs=1e-6)


def test_calib_data_replays_to_the_same_ranges(
    quantized: Path, tiny_checkpoint: Path, outputs: Path, tmp_path: Path
) -> None:
    """What dump.format=pth writes, dump.from takes: each record is one batch, and the extremes are the same."""
    records = torch.load(quantized / "dump" / "calib_data.pth", weights_only=True)
    assert len(records) == 3 and all(isinstance(record, list) and len(record) == 10 for record in records)
    done = run(
        outputs,
        "+recipe=osp12_w8a8",
        f"model.checkpoint={tiny_checkpoint}",
        "model.dtype=fp32",
        f"dump.from={quantized / 'dump' / 'calib_data.pth'}",
        "sample.compare=false",
        "timing.repeats=0",
        "name=replayed",
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        json.loads((folder / "calibrate" / "ranges.json").read_text())["layers"]
        for folder in (quantized, run_folder(outputs, "replayed"))
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert theirs[name] == pytest.approx(ours[name], rel=1e-5), name


def test_the_second_run_reuses_everything_and_is_whole(tiny_checkpoint: Path, outputs: Path, quantized: Path) -> None:
    again = run(
        outputs,
        "+recipe=osp12_w8a8",
        f"model.checkpoint={tiny_checkpoint}",
        "model.dtype=fp32",
        "dump.format=pth",
        "timing.repeats=2",
        "name=again",
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("reused") == 4
    folder = run_folder(outputs, "again")
    for name in ("quantize/quant_model_weight_w8a8.safetensors", "sample/prompt-000/latents.safetensors"):
        assert (folder / name).stat().st_ino == (quantized / name).stat().st_ino


def test_nothing_optimized_is_the_plain_baseline_bit_for_bit(
    tiny_checkpoint: Path, outputs: Path, quantized: Path
) -> None:
    done = run(
        outputs,
        "+recipe=osp12_float",
        f"model.checkpoint={tiny_checkpoint}",
        "model.dtype=fp32",
        "sample.compare=false",
    )
    assert done.returncode == 0, done.stderr
    plain = run_folder(outputs, "osp12_float")
    references = {p["index"]: p["folder"] for p in Recording(quantized / "dump").prompts if "text" in p["roles"]}
    for index, folder in references.items():
        a = load_file(plain / "sample" / f"prompt-{index:03d}" / "latents.safetensors")["latents"]
        b = load_file(quantized / "dump" / folder / "latents.safetensors")["latents"]
        assert torch.equal(a, b)
