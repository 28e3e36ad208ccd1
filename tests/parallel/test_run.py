"""`parallel=cfg2` from the command line: the files of one process, made by two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.short_runs import results, run


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def both(request, tiny_checkpoint, tmp_path_factory) -> tuple[Path, Path]:
    """The run folders of one process and of two."""
    outputs, dtype = tmp_path_factory.mktemp(request.param), f"model.dtype={request.param}"
    alone = run(tiny_checkpoint, outputs / "alone", "sampler.guidance_batch=separate", dtype)
    delivered = [f"quant.folder={outputs}/weights", f"dump.folder={outputs}/calib"]
    return alone, run(tiny_checkpoint, outputs / "two", "parallel=cfg2", dtype, *delivered)


def test_float_and_w8a8_are_bit_equal_to_one_process(both):
    alone, two = both
    assert "one branch of guidance is computed on rank 1" in (two / "run.log").read_text()
    expected, found = results(alone), results(two)
    assert {"dump/prompt-000/statistics.safetensors", "dump/prompt-001/latents.safetensors"} <= expected.keys()
    assert {"quantize/quant_model_weight_w8a8.safetensors", "sample/prompt-000/frames.safetensors"} <= expected.keys()
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    float_latents, quantized = (
        load_file(two / stage / "latents.safetensors")["latents"] for stage in ("dump/prompt-001", "sample/prompt-000")
    )
    assert not float_latents.equal(quantized), "sample must have run the quantized model"


def test_one_folder_one_log_one_voice(both):
    _, two = both
    log = (two / "run.log").read_text()
    terminal = (two / "terminal.txt").read_text()
    for stage in ("dump", "calibrate", "quantize", "sample"):
        assert log.count(f"{stage} starts") == 1
        assert len([line for line in terminal.splitlines() if line.startswith(stage) and "done in" in line]) == 1
    assert json.loads((two / "status.json").read_text())["state"] == "done"
    assert json.loads((two / "measurements/dump.json").read_text())["machine"]["processes"] == 2
    assert not list(two.glob("*stderr*")) and not (two / "traceback.txt").exists()


def test_each_rank_finds_its_files_and_the_disk_has_them_once(both):
    _, two = both
    outputs = two.parents[2]
    for folder, names in (
        (two / "quantize", ["quant_model_weight_w8a8.safetensors", "quant_model_description_w8a8.json"]),
        (outputs / "weights", ["quant_model_weight_w8a8.safetensors", "quant_model_description_w8a8.json"]),
        (two / "dump", ["calib_data.pth"]),
        (outputs / "calib", ["calib_data.pth"]),
    ):
        for name in names:
            file = folder / name
            for rank in (0, 1):
                assert file.with_name(f"{file.stem}_{rank}{file.suffix}").samefile(file)
