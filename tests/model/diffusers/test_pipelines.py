"""Tiny random pipelines of seven families through every stage: what is recorded is what happened, and W8A8 reloads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model.diffusers.conftest import STEPS
from PIL import Image
from safetensors.torch import load_file

from runner.bench.context import float_transformer
from runner.generation.generate import generate
from runner.hardware import open_device
from runner.model import blocks, load_transformer, skeleton
from runner.quant import export
from runner.quant.w8a8 import W8A8Linear
from runner.recording.recording import Recording
from runner.sampler.methods import FOLLOWING

BLOCKS = {
    "flux": {"transformer_blocks": 2, "single_transformer_blocks": 2}, "pixart": {"transformer_blocks": 2},
    "wan": {"blocks": 2}, "cogvideox": {"transformer_blocks": 2}, "ltx": {"transformer_blocks": 2},
    "hunyuan": {"transformer_blocks": 2, "single_transformer_blocks": 2}, "sd3": {"transformer_blocks": 3},
}  # fmt: skip
IMAGES = ("flux", "pixart", "sd3")
BRANCHES = {"wan": 2}  # calls of the transformer in a step, where there is more than one
UNGUIDED = ("flux", "hunyuan")  # whose guidance is an input of the transformer


def test_the_stages_leave_what_they_should(ran):
    suffix = "png" if ran.name in IMAGES else "mp4"
    for stage in ("dump", "sample"):
        assert (ran.folder / stage / "videos" / f"prompt-000.{suffix}").stat().st_size > 0
    frames = load_file(ran.folder / "sample/prompt-000/frames.safetensors")["frames"]
    model = ran.config["model"]
    assert frames.shape == (model.get("num_frames") or 1, model["height"], model["width"], 3)
    if ran.name in IMAGES:
        with Image.open(ran.folder / "sample/videos/prompt-000.png") as image:
            assert image.size == (model["width"], model["height"])
    metrics = json.loads((ran.folder / "sample/metrics.json").read_text())
    assert metrics["ledger"]["int8_matmuls"] > 0
    (row,) = metrics["prompts"]
    # Quantized, blocks reused, still much the same picture: the very same in 8 bits, perhaps, of float32.
    assert row["latent_error"] > 0 and (row["psnr_db"] is None or row["psnr_db"] > 12)
    layers = json.loads((ran.folder / "quantize/layers.json").read_text())
    assert min(layer["snr_db"] for layer in layers if layer["quantized"]) > 15
    kept = {layer["layer"] for layer in layers if not layer["quantized"]}
    assert "proj_out" in kept and not any("attn" in name for name in kept if "blocks." not in name)


def test_disk_and_memory_are_told_before_anything_runs(ran):
    rows = {row["stage"]: row for row in json.loads((ran.folder / "plan.json").read_text())["stages"]}
    taken = sum(file.stat().st_size for file in (ran.folder / "dump").rglob("*") if file.is_file())
    assert 0.95 * taken <= rows["dump"]["disk"] <= 1.2 * taken
    assert all(rows[stage]["disk"] and rows[stage]["memory"] for stage in ("quantize", "sample"))


def test_solver_steps_and_guidance_are_the_checkpoint_s(ran):
    sampler = ran.config["sampler"]
    index = json.loads((Path(ran.config["model"]["checkpoint"]) / "model_index.json").read_text())
    assert f"{sampler['sample_method']}Scheduler" == index["scheduler"][1]
    expected = {"flux": 3.5, "pixart": 4.5, "wan": 5.0, "cogvideox": 6.0, "hunyuan": 6.0, "ltx": 3.0, "sd3": 7.0}
    assert sampler["guidance_scale"] == expected[ran.name]


def test_what_was_recorded_is_what_the_solver_got(ran):
    """Every recorded call, made again and guided, is the prediction of its step; the plan bounds how many there are."""
    recording = Recording(ran.folder / "dump")
    (part,) = recording.parts("calibration")
    calls, steps = list(recording.calls(part)), list(recording.trajectory(part))
    each = BRANCHES.get(ran.name, 1)
    assert len(calls) == each * STEPS and len(steps) == STEPS
    dump = next(s for s in json.loads((ran.folder / "plan.json").read_text())["stages"] if s["stage"] == "dump")
    clips = 2  # the other one is what the search of the cache checks its answer on
    assert clips * len(calls) <= dump["forwards"] and (dump["at_most"] or clips * len(calls) == dump["forwards"])
    transformer = float_transformer(ran.config)
    scale = ran.config["sampler"]["guidance_scale"]
    with torch.inference_mode():
        for place, step in enumerate(steps):
            outputs = [transformer(**call, return_dict=False)[0] for call in calls[place * each : (place + 1) * each]]
            if ran.name == "cogvideox":
                outputs = [output.float() for output in outputs]
            if ran.name in UNGUIDED:
                (predicted,) = outputs
            else:  # joint: the unconditional branch first; apart, as Wan does it: the conditional one
                u, c = reversed(outputs) if each == 2 else outputs[0].chunk(2)
                predicted = u + scale * (c - u)
            if ran.name == "pixart":
                predicted = predicted.chunk(2, dim=1)[0]
            assert torch.equal(predicted, step.prediction), place


def test_blocks_are_found_in_the_order_in_which_they_run(ran):
    pipeline = ran.bench._pipeline
    names = blocks(pipeline)
    assert names == [f"{stem}.{i}" for stem, count in BLOCKS[ran.name].items() for i in range(count)]
    seen: list[str] = []
    hooks = [
        pipeline.transformer.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
        for name in names
    ]
    recording = Recording(ran.folder / "dump")
    with torch.inference_mode():
        pipeline.transformer(**next(recording.calls(recording.parts("calibration")[0])))
    for hook in hooks:
        hook.remove()
    assert seen == names


def test_a_schedule_is_taken_exactly_and_leaves_no_trace(ran, tmp_path):
    """Steps itself compares what the transformer gets with the schedule, at every call."""
    pipeline, config = ran.bench._pipeline, ran.config
    if ran.name == "cogvideox":
        assert config["sampler"]["sample_method"] not in FOLLOWING  # the desk refuses a schedule
        return

    def latents(timesteps=None):
        seed = config["seed"]
        made = generate(pipeline, config, ["a red boat"], [seed], open_device("cpu"), decode=False, timesteps=timesteps)
        assert made.frames.numel() == 0
        return made.latents

    plain = latents()
    own = [float(t) for t in pipeline.scheduler.timesteps]
    assert len(own) == STEPS
    if config["sampler"]["sample_method"] == "FlowMatchEulerDiscrete":
        again = latents(own)
        assert float((again - plain).float().norm() / plain.float().norm()) < 0.01  # a share is rounded once more
    chosen = [own[0], 0.3 * own[0]]
    assert not torch.equal(latents(chosen), plain)
    assert torch.allclose(pipeline.scheduler.timesteps.double(), torch.tensor(chosen, dtype=torch.float64))
    assert torch.equal(latents(), plain)


def test_an_export_and_a_skeleton_are_the_model_without_its_float_weights(ran):
    """Nothing but what was quantized differs from the float model: every parameter, every buffer, to the bit."""
    whole = load_transformer(ran.config["model"], "cpu")
    for name, buffer in skeleton(ran.config["model"]).named_buffers():
        assert torch.equal(buffer, whole.get_buffer(name)) and buffer.dtype == whole.get_buffer(name).dtype, name
    tensors, description = export.load(ran.folder / "quantize")
    assert all(p.is_meta for p in skeleton(ran.config["model"]).parameters())
    for name, parameter in whole.named_parameters():
        if description[name] == "FLOAT" and not name.endswith(".bias"):
            assert torch.equal(tensors[name], parameter) and tensors[name].dtype == parameter.dtype, name
    quantized = ran.bench._pipeline.transformer
    assert sum(isinstance(module, W8A8Linear) for module in quantized.modules()) == sum(
        tag == "W8A8" and key.endswith(".weight") for key, tag in description.items()
    )
