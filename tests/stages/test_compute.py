"""Whole runs that compute in float32 from bf16 weights: what stays the same bytes, on all models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model.diffusers.in_process import run
from model.diffusers.tiny import PIPELINES, save

from runner.hardware import casting
from runner.quant import export
from runner.recording.recording import Recording

PARTS_OF_WEIGHTS = ("weight", "weight_scale", "weight_offset", "bias")
SEARCHES = {
    "osp12": ("cache=dit_cache", "cache.ratio=1.05"),
    "opensora12": ("sampler.search=recording", "recording.steps=4"),
    "sd3": ("cache=adaptive", "cache.ratio=1.05"),
}


@pytest.fixture
def arguments(request, tiny_checkpoint: Path, tiny_opensora12: Path, tmp_path: Path) -> tuple[str, ...]:
    if request.param == "osp12":
        at = f"model.checkpoint={tiny_checkpoint}"
        of_model = ("+recipe=osp12_w8a8", at, "dump.format=pth", "model.num_frames=1")  # bf16 may be slow here
    elif request.param == "opensora12":
        of_model = ("model=opensora12", f"model.checkpoint={tiny_opensora12}", "quant=w8a8")
    else:
        room = "sd3" if request.param == "sd3" else "diffusers"
        of_model = (f"model={room}", f"model.checkpoint={save(request.param, tmp_path)}", "quant=w8a8")
        sizes = {key: value for key, value in PIPELINES[request.param][1].items() if key != "call"}
        of_model += (*(f"model.{key}={value}" for key, value in sizes.items()), "sampler.num_sampling_steps=4")
    return (*of_model, "model.dtype=bf16", "prompts.text=[a red boat]", "timing.repeats=0")


@pytest.mark.parametrize("arguments", ["osp12", "opensora12", "sd3", "flux"], indirect=True)
def test_an_export_is_the_same_bytes_whatever_is_computed_in(arguments, tmp_path, request):
    more = SEARCHES.get(request.node.callspec.params["arguments"], ())
    runs = {
        name: run(tmp_path, *arguments, *options, *(more if name != "bf16" else ()))[0]
        for name, options in {"bf16": ["hardware.compute=bf16"], "fp32": ["hardware.compute=fp32"]}.items()
    }
    (native, description), (wide, same) = (export.load(folder / "quantize") for folder in runs.values())
    assert description == same and native.keys() == wide.keys()
    for name, tensor in native.items():
        assert tensor.dtype == wide[name].dtype, name
        if description[name] == export.FLOAT or name.rpartition(".")[2] in PARTS_OF_WEIGHTS:
            assert torch.equal(tensor, wide[name]), name
    (part,) = Recording(runs["fp32"] / "dump").parts("calibration")
    assert Recording(runs["fp32"] / "dump").final(part).dtype == torch.float32
    if "dump.format=pth" in arguments:
        records = torch.load(runs["fp32"] / "dump" / "calib_data.pth", weights_only=True)
        assert records[0][0].dtype == torch.bfloat16


@pytest.mark.parametrize("arguments", ["osp12", "opensora12", "flux"], indirect=True)
def test_cast_layer_by_layer_all_results_are_the_same_bytes(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(casting, "LARGE", 64)
    results = []
    for layerwise in ("false", "true"):
        options = ("hardware.compute=fp32", f"hardware.layerwise_casting={layerwise}")
        folder, config = run(tmp_path / layerwise, *arguments, *options)
        assert config["hardware"]["layerwise_casting"] is (layerwise == "true")
        files = [file for stage in ("dump", "calibrate", "quantize", "sample") for file in (folder / stage).rglob("*")]
        results.append({str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()})
    assert results[0].keys() == results[1].keys() and "quantize/layers.json" in results[0]
    assert [name for name in results[0] if results[0][name] != results[1][name]] == []


@pytest.mark.parametrize("arguments", ["osp12", "sd3"], indirect=True)
def test_a_seed_draws_the_same_noise_whatever_is_computed_in(arguments, tmp_path):
    """The first latents of a run are its noise; torch draws other numbers in float32 than in bfloat16."""
    first = []
    for compute in ("bf16", "fp32"):
        recorded = run(tmp_path, *arguments, f"hardware.compute={compute}", "until=dump")[0] / "dump"
        (part,) = Recording(recorded).parts("calibration")
        first.append(next(Recording(recorded).trajectory(part)).latents)
    assert first[0].dtype == torch.bfloat16 and first[1].dtype == torch.float32
    assert torch.allclose(first[0].float(), first[1], rtol=2**-7)


def test_an_export_of_float32_weights_is_not_rounded_by_a_narrower_compute(tiny_checkpoint, tmp_path):
    arguments = ("+recipe=osp12_w8a8", f"model.checkpoint={tiny_checkpoint}", "model.dtype=fp32", "timing.repeats=0")
    arguments += ("model.num_frames=1", "prompts.text=[a red boat]")
    folders = [run(tmp_path, *arguments, f"hardware.compute={compute}")[0] for compute in ("fp32", "bf16")]
    (whole, _), (narrow, _) = (export.load(folder / "quantize") for folder in folders)
    names = [name for name in whole if name.rpartition(".")[2] in PARTS_OF_WEIGHTS]
    assert {name.rpartition(".")[2] for name in names} == set(PARTS_OF_WEIGHTS)
    assert [name for name in names if not torch.equal(whole[name], narrow[name])] == []
