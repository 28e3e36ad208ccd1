"""The shipped checkpoint: layout, size and quality, as far as seconds tell (all: training.evaluate)."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from runner.embedded import world
from runner.embedded.judge import NONE, judge
from runner.embedded.training.scores import (
    SHIPPED,
    decode,
    film,
    reconstruction_figures,
    reconstructions,
    right,
    spread,
)
from runner.embedded.training.train_vae import DEVIATION, reconstruct
from runner.hardware.casting import DTYPES
from runner.hardware.compute import decide

DTYPE = decide("auto", "cpu", "bf16").dtype  # the shipped weights are bfloat16, which both hold

WEIGHTS = SHIPPED["osp12"]


@pytest.fixture(scope="module")
def pipeline():
    from runner.model.osp12.loading import load

    return load({"checkpoint": WEIGHTS, "dtype": DTYPE}, "EulerAncestralDiscrete", "cpu")


def test_the_folder_is_small_and_in_the_released_layout() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 16_000_000
    for part, name in ((".", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        json.loads((WEIGHTS / part / "config.json").read_text())
        with safe_open(WEIGHTS / part / f"{name}.safetensors", "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}
    assert (WEIGHTS / "README.md").is_file() and (WEIGHTS / "text_encoder/tokenizer.json").is_file()


def test_its_prompts_are_captions_that_the_judge_can_hold_clips_against() -> None:
    defaults = yaml.safe_load((WEIGHTS / "defaults.yaml").read_text())
    text, calibration = (defaults["prompts"][key] for key in ("text", "calibration"))
    assert len(text) == len(calibration) == 4 and not set(text) & set(calibration)
    assert any(world.parse(each) in world.UNSEEN for each in text)
    assert all(world.parse(each) for each in calibration)
    model = defaults["model"]
    assert (model["num_frames"], model["height"], model["width"]) == (world.FRAMES, world.SIZE, world.SIZE)


def test_the_autoencoder_keeps_held_out_clips(pipeline) -> None:
    figures = reconstruction_figures(*reconstructions(partial(reconstruct, pipeline.vae), 36))
    assert figures["psnr_db_median"] >= 30
    assert figures["judge_right"] >= 0.97


def test_its_latents_have_the_deviation_that_training_gave_them(pipeline) -> None:
    from runner.embedded.training.train_vae import held_out_clips, to_video

    video = to_video([clip for clip, _ in held_out_clips(8)]).to(DTYPES[DTYPE])
    with torch.no_grad():
        latents = pipeline.vae.encode(video).latent_dist.mode().float() * pipeline.vae.scaling_factor
    assert abs(float(latents.mean())) < 0.15 * DEVIATION and abs(float(latents.std()) / DEVIATION - 1) < 0.15


def test_decoded_noise_shows_nothing(pipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = DEVIATION * torch.randn(8, 1, 4, 5, 8, 8, generator=generator)
    assert sum(judge(decode(pipeline.vae, each)) == NONE for each in noise) >= 7


def test_generated_clips_show_what_their_captions_say(pipeline) -> None:
    captions = spread("seen", 8, 1) + spread("unseen", 4, 1)
    assert np.mean(right(partial(film, pipeline, steps=20, guidance=2.0), captions, seed=7)) >= 0.8
