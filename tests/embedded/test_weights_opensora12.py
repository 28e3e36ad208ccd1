"""The shipped Open-Sora 1.2: layout, size, quality, as far as seconds tell (all: training.evaluate)."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from runner.embedded import world
from runner.embedded.training import opensora12
from runner.embedded.training.scores import SHIPPED, reconstruction_figures, reconstructions, right, spread
from runner.embedded.training.train_opensora12 import DEVIATION
from runner.embedded.training.train_vae import decibels, held_out_clips, to_video
from runner.hardware.casting import DTYPES
from runner.hardware.compute import decide

DTYPE = decide("auto", "cpu", "bf16").dtype  # the shipped weights are bfloat16, which both hold

WEIGHTS = SHIPPED["opensora12"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from runner.model.opensora12 import load

    return load({"checkpoint": str(WEIGHTS), "dtype": DTYPE}, "RFLOW", "cpu")


def test_the_folder_is_small_and_in_the_released_layout() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 16_000_000
    for part in (".", "vae3d", "text_encoder"):
        with safe_open(WEIGHTS / part / "model.safetensors", "pt") as file:
            assert "BF16" in {file.get_slice(key).get_dtype() for key in file.keys()}
    assert (WEIGHTS / "vae2d/config.json").is_file() and (WEIGHTS / "README.md").is_file()


def test_what_it_wants_is_what_the_script_writes() -> None:
    assert (WEIGHTS / "defaults.yaml").read_text() == opensora12.DEFAULTS
    text = yaml.safe_load(opensora12.DEFAULTS)["prompts"]["text"]
    assert any(world.parse(each) in world.UNSEEN for each in text)


def test_the_autoencoder_keeps_held_out_clips(pipeline) -> None:
    figures = reconstruction_figures(*reconstructions(partial(opensora12.reconstruct, pipeline.vae), 24))
    assert figures["psnr_db_median"] >= 30
    assert figures["judge_right"] >= 0.95


def test_its_latents_have_the_deviation_that_training_gave_them(pipeline) -> None:
    with torch.no_grad():
        video = to_video([clip for clip, _ in held_out_clips(8)]).to(DTYPES[DTYPE])
        latents = pipeline.vae.encode(video, sample_posterior=False).float()
    assert abs(float(latents.mean())) < 0.15 * DEVIATION and abs(float(latents.std()) / DEVIATION - 1) < 0.15


def test_generated_clips_show_what_their_captions_say(pipeline) -> None:
    captions = spread("seen", 8, 1) + spread("unseen", 4, 1)
    found = right(partial(opensora12.film, pipeline, steps=20, guidance=2.0), captions, seed=7)
    assert np.mean(found) >= 0.8


def test_a_first_frame_is_kept(pipeline) -> None:
    images = [np.array(Image.open(WEIGHTS / f"first-{number:03d}.png")) for number in range(len(opensora12.FIRST))]
    first = [to_video([image[None]])[0, :, 0] for image in images]
    generators = [torch.Generator().manual_seed(number) for number in range(len(first))]
    asked = {"steps": 20, "guidance": 2.0, "generators": generators}
    clips = opensora12.film(pipeline, opensora12.FIRST, first=first, **asked)
    assert min(decibels(clip[0], image) for clip, image in zip(clips, images, strict=True)) >= 28
