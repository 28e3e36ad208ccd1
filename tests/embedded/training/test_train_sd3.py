import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from runner.embedded import world
from runner.embedded.training import sd3
from runner.embedded.training.text import CLIP_LENGTH, build_clip_tokenizer
from runner.embedded.training.train import main
from runner.embedded.training.train_sd3 import shortened
from runner.hardware.compute import decide

DTYPE = decide("auto", "cpu", "bf16").dtype  # the shipped weights are bfloat16, which both hold

TINY = "--model sd3 --vae-phases 1:2:2 --iterations 3 --batch 4 --clips 1 --threads 1 --device cpu".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole training of a few steps, without the judge's checks on its way."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runner.embedded.training.train_sd3.scores", lambda *_: {})
        main(["--out", str(folder), *TINY])
    return folder


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.embedded.training.train_sd3.scores", lambda *_: {})
    for _ in range(5):  # no minutes at all: each call ends after an iteration
        main(["--out", str(tmp_path), *TINY, "--minutes", "0"])
    for name in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        one, many = (folder / "weights" / f"{name}.safetensors" for folder in (trained, tmp_path))
        assert one.read_bytes() == many.read_bytes()
    rows = [json.loads(line) for line in (trained / "transformer.jsonl").read_text().splitlines()]
    assert rows[-1]["iteration"] == 3


def test_the_export_is_a_released_folder_that_draws_stills(trained: Path) -> None:
    from runner.model.sd3 import load

    model = {"checkpoint": str(trained / "weights"), "dtype": DTYPE, "enable_tiling": False, "text_encoder_3": False}
    pipeline = load(model, "FlowMatchEulerDiscrete", "cpu")
    assert pipeline.scheduler.config.shift == sd3.SHIFT and pipeline.text_encoder_3 is None
    assert pipeline.tokenizer_max_length == CLIP_LENGTH
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    captions = world.captions("seen", world.PLACES)[:2]
    stills = sd3.draw(pipeline, captions, steps=2, guidance=4.0, generators=generators)
    assert [still.shape for still in stills] == [(1, 64, 64, 3)] * 2 and stills[0].dtype == np.uint8
    defaults = yaml.safe_load((trained / "weights/defaults.yaml").read_text())
    text, calibration = (defaults["prompts"][key] for key in ("text", "calibration"))
    unseen = world.captions("unseen", world.PLACES)
    assert set(text) & set(unseen) and not set(text) & set(calibration)
    assert {*text, *calibration} <= set(world.captions(motions=world.PLACES))


def test_training_reads_text_as_the_pipeline_does(trained: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    folder = trained / "weights"
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None).to(torch.float32)
    model = sd3.TextToImage(len(build_clip_tokenizer())).eval()
    for name in ("text_encoder", "text_encoder_2", "transformer"):
        getattr(model, name).load_state_dict(getattr(pipeline, name).state_dict())
    text, timestep = "a red circle on the left", torch.tensor([700.0])
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = build_clip_tokenizer()(text, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        words, _, pooled, _ = pipeline.encode_prompt(text, None, None, max_sequence_length=CLIP_LENGTH)
        theirs = pipeline.transformer(noisy, words, pooled, timestep, return_dict=False)[0]
        torch.testing.assert_close(model(noisy, timestep, ids), theirs)


def test_latents_are_scaled_to_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    vae = sd3.scaled(sd3.build_vae())
    images = sd3.to_images(still for still, _ in sd3.held_out_stills(96, seed=2))
    with torch.no_grad():
        means = (vae.encode(images).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert abs(float(means.mean())) < 1e-3 and float(means.std()) == pytest.approx(1, abs=1e-3)


def test_a_caption_loses_words_and_stays_a_prompt() -> None:
    texts = shortened(world.Attributes("circle", "red", "on the left"))
    assert texts[0] == "a" and texts[7] == "a red circle on the left" and len(set(texts)) == 8
    assert (texts[1], texts[2], texts[4]) == ("a on the left", "a circle", "a red")


def test_every_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from runner.embedded.training.text import save_clip_tokenizer

    save_clip_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = [tokenizer(text).input_ids for text in world.captions(motions=world.PLACES)]
    assert len({tuple(each) for each in ids}) == 144 and max(map(len, ids)) == CLIP_LENGTH
    assert {row[0] for row in ids} == {len(tokenizer) - 2} and {row[-1] for row in ids} == {len(tokenizer) - 1}
    assert len(tokenizer("a pink hat").input_ids) > 5
