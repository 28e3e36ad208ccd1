"""The shipped Stable Diffusion 3: layout, size, quality, as far as seconds tell (all: training.evaluate)."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from runner.embedded import world
from runner.embedded.training import sd3
from runner.embedded.training.scores import SHIPPED, reconstruction_figures, right, spread
from runner.hardware.casting import DTYPES
from runner.hardware.compute import decide
from runner.model.diffusers import folder as folders

DTYPE = decide("auto", "cpu", "bf16").dtype  # the shipped weights are bfloat16, which both hold

WEIGHTS = SHIPPED["sd3"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from runner.model.sd3 import load

    model = {"checkpoint": str(WEIGHTS), "dtype": DTYPE, "enable_tiling": False, "text_encoder_3": False}
    return load(model, "FlowMatchEulerDiscrete", "cpu")


def test_the_folder_is_small_and_in_the_released_layout() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 16_000_000
    assert folders.index(WEIGHTS)["_class_name"] == "StableDiffusion3Pipeline"
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    assert [file.parent.name for file in files] == ["text_encoder", "text_encoder_2", "transformer", "vae"]
    for path in files:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}
    assert (WEIGHTS / "README.md").is_file()


def test_what_it_wants_is_what_the_script_writes() -> None:
    assert (WEIGHTS / "defaults.yaml").read_text() == sd3.DEFAULTS
    text = yaml.safe_load(sd3.DEFAULTS)["prompts"]["text"]
    assert any(world.parse(each) in world.combinations("unseen", world.PLACES) for each in text)


def test_the_autoencoder_keeps_held_out_stills(pipeline) -> None:
    held_out = [(still[None], text) for still, text in sd3.held_out_stills(36)]
    figures = reconstruction_figures(sd3.reconstruct(pipeline.vae, [still[0] for still, _ in held_out]), held_out)
    assert figures["psnr_db_median"] >= 30
    assert figures["judge_right"] >= 0.97


def test_its_latents_have_the_scale_that_the_pipeline_expects(pipeline) -> None:
    images, config = sd3.to_images(still for still, _ in sd3.held_out_stills(16)).to(DTYPES[DTYPE]), pipeline.vae.config
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mode().float()
    scaled = (latents - config.shift_factor) * config.scaling_factor
    assert abs(float(scaled.mean())) < 0.15 and abs(float(scaled.std()) - 1) < 0.15


def test_generated_stills_show_what_their_captions_say(pipeline) -> None:
    captions = spread("seen", 16, 1, world.PLACES) + spread("unseen", 8, 1, world.PLACES)
    found = right(partial(sd3.draw, pipeline, steps=14, guidance=2.0), captions, seed=7)
    assert np.mean(found) >= 0.85
