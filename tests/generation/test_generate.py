"""Generations with a schedule and along a noise path, by a real pipeline."""

import json

import pytest
import torch

from runner.generation.generate import Generation, generate, save_part
from runner.hardware import open_device
from runner.model import load_pipeline
from runner.sampler import schedules


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    root = tiny_checkpoint.parent
    model = {
        **{"name": "osp12", "checkpoint": str(tiny_checkpoint), "vae": str(root / "vae"), "dtype": "fp32"},
        **{"text_encoder": str(root / "text_encoder"), "num_frames": 9, "height": 32, "width": 48, "template": "{}"},
        **{"negative_prompt": "", "max_sequence_length": 48, "clean_caption": True},
    }
    sampler = {
        **{"sample_method": "EulerAncestralDiscrete", "num_sampling_steps": 6, "guidance_scale": 4.0},
        **{"guidance_batch": "joint", "schedule": None, "noise": "draws"},
    }
    return {"model": model, "sampler": sampler, "recording": {"steps": 6}, "parallel": {"cfg": False}}


@pytest.fixture(scope="module")
def pipeline(config):
    return load_pipeline(config["model"], config["sampler"]["sample_method"], "cpu")


def latents(pipeline, config, seeds=(5,), **sampler):
    changed = {**config, "sampler": {**config["sampler"], **sampler}}
    return generate(pipeline, changed, ["a red boat"] * len(seeds), list(seeds), open_device("cpu")).latents


def test_its_own_timesteps_in_a_file_change_no_bit(pipeline, config, tmp_path):
    plain = latents(pipeline, config)
    pipeline.scheduler.set_timesteps(6)
    file = tmp_path / schedules.NAME
    schedules.write(pipeline.scheduler.timesteps.tolist(), file)
    assert torch.equal(latents(pipeline, config, schedule=str(file), num_sampling_steps=6), plain)
    file.write_text(json.dumps(json.loads(file.read_text())[::2]))
    assert not torch.equal(latents(pipeline, config, schedule=str(file), num_sampling_steps=3), plain)
    assert torch.equal(latents(pipeline, config), plain)  # nothing of it stays


def test_a_path_over_its_own_nodes_is_the_reference_s_run(pipeline, config):
    plain, path = latents(pipeline, config).float(), latents(pipeline, config, noise="path").float()
    assert float((plain - path).norm() / plain.norm()) < 0.05  # rounded differently
    other = latents(pipeline, config, seeds=(6,)).float()
    assert float((plain - other).norm() / plain.norm()) > 0.5
    assert torch.equal(latents(pipeline, config).float(), plain)


def test_a_path_belongs_to_its_seed_whatever_the_batch(pipeline, config):
    both = latents(pipeline, config, seeds=(5, 6), noise="path", num_sampling_steps=4).float()
    alone = latents(pipeline, config, seeds=(6,), noise="path", num_sampling_steps=4).float()
    assert float((both[1:] - alone).norm() / alone.norm()) < 0.05


def test_a_clip_that_overflowed_is_refused_before_anything_is_made_of_it(tmp_path):
    latents = torch.zeros(2, 4, 1, 2, 2)
    latents[1, 0, 0, 0, 0] = float("nan")
    generation = Generation(latents, torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8))
    save_part(generation, 0, tmp_path, None, 1.0)
    (tmp_path / "latents.safetensors").unlink()
    with pytest.raises(FloatingPointError, match="model.dtype"):
        save_part(generation, 1, tmp_path, None, 1.0)
    assert not (tmp_path / "latents.safetensors").exists()


@pytest.mark.parametrize("aes", [None, 6.5])
def test_a_null_says_no_score_rather_than_the_pipeline_s_default(config, tiny_opensora12, aes):
    size = {"num_frames": 9, "height": 32, "width": 48, "fps": 8, "aes": aes, "max_sequence_length": 12}
    model = {"name": "opensora12", "checkpoint": str(tiny_opensora12), "dtype": "fp32", **size}
    pipeline = load_pipeline(model, "RFLOW", "cpu")
    changed = {**config, "model": model, "sampler": {**config["sampler"], "num_sampling_steps": 2}}
    got = generate(pipeline, changed, ["a red boat"], [5], open_device("cpu"), decode=False).latents
    asked = {**size, "num_inference_steps": 2, "guidance_scale": 4.0, "generator": torch.Generator().manual_seed(5)}
    assert torch.equal(got, pipeline("a red boat", **asked, output_type="latent").frames)
