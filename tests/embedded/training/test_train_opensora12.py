from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.embedded import world
from runner.embedded.training import opensora12, train_opensora12
from runner.embedded.training.heads import cells
from runner.embedded.training.text import build_tokenizer, tokenize
from runner.embedded.training.train import main
from runner.embedded.training.train_opensora12 import DEVIATION, GIVEN, encode_clips, given_frames, scale_latents
from runner.embedded.training.train_transformer import TransformerPlan
from runner.embedded.training.train_vae import held_out_clips, to_video
from runner.hardware.compute import decide

DTYPE = decide("auto", "cpu", "bf16").dtype  # the shipped weights are bfloat16, which both hold

TINY = "--model opensora12 --vae-phases 1:2:1 17:2:1 --iterations 3 --batch 4 --threads 1 --device cpu".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a whole training of a few steps and of the same one interrupted after each, on made-up latents."""
    generator = torch.Generator().manual_seed(0)
    sizes, scene = (
        {"short": 5, "short_first": 1, "long": 10, "long_first": 1},
        world.scene(world.SEEN[0], np.random.default_rng(0)),
    )
    data = {name: 0.15 * torch.randn(len(world.SEEN), 2, 4, t, 8, 8, generator=generator) for name, t in sizes.items()}
    for name, frames in (("short", 17), ("long", 34)):
        data[f"{name}_cells"] = cells(scene, frames).expand(len(world.SEEN), 2, -1, -1)
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "many")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_opensora12, "scores", lambda *_: {})
        patch.setattr(train_opensora12, "encode_clips", lambda *_: data)
        patch.setattr(train_opensora12, "frame_latents", partial(train_opensora12.frame_latents, clips=4))
        main(["--out", str(folders[0]), *TINY])
        for _ in range(5):  # no minutes at all: each call ends after an iteration
            main(["--out", str(folders[1]), *TINY, "--minutes", "0"])
    return folders[0], folders[1]


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(trained: tuple[Path, Path]) -> None:
    for name in ("model.safetensors", "vae3d/model.safetensors", "text_encoder/model.safetensors"):
        one, many = ((folder / "weights" / name).read_bytes() for folder in trained)
        assert one == many


def test_the_export_is_a_released_folder_that_films_and_goes_on_from_an_image(trained: tuple[Path, Path]) -> None:
    from runner.model.opensora12 import load

    pipeline = load({"checkpoint": str(trained[0] / "weights"), "dtype": DTYPE}, "RFLOW", "cpu")
    freqs, state = pipeline.transformer.rope.freqs, torch.load(trained[0] / "transformer.pt", weights_only=True)
    assert torch.equal(freqs, state["average"]["transformer.rope.freqs"]) and freqs.dtype == torch.float32
    vae = torch.load(trained[0] / "vae.pt", weights_only=True)["model"]
    assert torch.equal(pipeline.vae.scale, vae["scale"]) and torch.equal(pipeline.vae.shift, vae["shift"])
    captions, first = world.captions()[:2], [to_video([clip[:1]])[0, :, 0] for clip, _ in held_out_clips(2)]
    for given in ({}, {"first": first}, {"frames": 34}):
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        clips = opensora12.film(pipeline, captions, steps=2, guidance=4.0, generators=generators, **given)
        assert clips.shape == (2, given.get("frames", 17), 64, 64, 3) and clips.dtype == np.uint8


def test_training_runs_the_branches_that_the_pipeline_runs() -> None:
    torch.manual_seed(0)
    model = opensora12.TextToVideo(len(build_tokenizer())).eval()
    torch.nn.init.normal_(model.transformer.final_layer.linear.weight)
    ids, mask = tokenize(build_tokenizer(), ["a red circle moving left"])
    noisy, timestep = torch.randn(1, 4, 5, 8, 8), torch.tensor([700.0])
    active = torch.ones(1, 5, dtype=torch.bool)
    size = {"fps": torch.tensor([8.0]), "height": torch.tensor([64.0]), "width": torch.tensor([64.0])}
    with torch.no_grad():
        text = model.text_encoder(input_ids=ids, attention_mask=mask)[0]
        nothing = model.transformer.y_embedder.y_embedding[None, :8]
        for wordless, y in ((False, text), (True, nothing)):
            theirs = model.transformer(noisy, timestep, y[:, None], mask, **size).sample[:, :4]
            ours = model(noisy, timestep, ids, mask, torch.tensor([wordless]), active)
            torch.testing.assert_close(ours, theirs)


def test_clips_are_encoded_as_the_pipeline_encodes_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "SEEN", world.SEEN[:1])
    vae, plan = opensora12.build_vae().eval(), TransformerPlan(clips=2)
    data = encode_clips(vae, plan, tmp_path / "latents.pt")
    shapes = {name: tuple(each.shape) for name, each in data.items()}
    assert shapes["short"] == (1, 2, 4, 5, 8, 8) and shapes["long"] == (1, 1, 4, 10, 8, 8)
    assert shapes["short_first"] == (1, 2, 4, 1, 8, 8) and shapes["long_first"] == (1, 1, 4, 1, 8, 8)
    again = encode_clips(vae, plan, tmp_path / "latents.pt")
    assert all(torch.equal(data[name], again[name]) for name in data)


@pytest.mark.slow
def test_scaling_changes_latents_and_not_what_is_reconstructed() -> None:
    torch.manual_seed(0)
    vae = opensora12.build_vae().eval()
    clips = [clip for clip, _ in held_out_clips(2)]
    before = opensora12.reconstruct(vae, clips)
    scale_latents(vae)
    after = opensora12.reconstruct(vae, clips)
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(before, after, strict=True))
    with torch.no_grad():
        z = torch.cat([vae.encode(to_video([clip]), sample_posterior=False) for clip, _ in held_out_clips(48, seed=2)])
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3, 4)), torch.full((4,), DEVIATION), atol=1e-3, rtol=0)


def test_frames_are_given_as_often_as_it_says_and_never_all() -> None:
    generator = torch.Generator().manual_seed(0)
    given = given_frames(torch.rand(20000, generator=generator), torch.rand(20000, 10, generator=generator))
    first = (given[:, 0] & (given.sum(1) == 1)).float().mean()
    half = (given[:, :5].all(1) & (given.sum(1) == 5)).float().mean()
    assert abs(first - GIVEN["first"]) < 0.01 and abs(half - GIVEN["half"]) < 0.01
    assert not given.all(1).any() and abs(given.any(1).float().mean() - sum(GIVEN.values())) < 0.01
