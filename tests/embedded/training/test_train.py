import json
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.embedded import world
from runner.embedded.training.journal import Journal, learning_rate, random_of
from runner.embedded.training.text import build_tokenizer, save_tokenizer, tokenize
from runner.embedded.training.train import main
from runner.embedded.training.train_vae import DEVIATION, build_vae, held_out_clips, scale_latents, to_frames, to_video

TINY = "--vae-phases 1:2:2 5:1:1 --iterations 3 --batch 2 --clips 1 --refine 2 --threads 1 --device cpu".split()


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.embedded.training.train_transformer.scores", lambda *_: {})
    main(["--out", str(tmp_path / "one"), *TINY])
    for _ in range(8):  # no minutes at all: each call ends after an iteration
        main(["--out", str(tmp_path / "many"), *TINY, "--minutes", "0"])
    for name in ("diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        one, many = ((tmp_path / run / "weights" / name).read_bytes() for run in ("one", "many"))
        assert one == many
    states = [torch.load(tmp_path / "one" / f"{name}.pt", weights_only=True)["model"] for name in ("vae", "decoder")]
    changed = {key.split(".")[0] for key in states[0] if not torch.equal(states[0][key], states[1][key])}
    assert changed == {"decoder", "post_quant_conv"}  # latents are still those that the transformer knows
    rows = [json.loads(line) for line in (tmp_path / "one/transformer.jsonl").read_text().splitlines()]
    assert rows[-1]["iteration"] == 3 and rows[-1]["cpu_minutes"] > 0


def test_scaling_changes_latents_and_not_what_is_reconstructed() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        clips = [clip for clip, _ in held_out_clips(2)]
        video = to_video(clips)
        before = vae.decode(vae.encode(video).latent_dist.mode())
        scale_latents(vae, clips)
        latents = vae.encode(video).latent_dist.mode()
        torch.testing.assert_close(vae.decode(latents), before, atol=1e-4, rtol=1e-4)
    scaled = latents * vae.scaling_factor
    torch.testing.assert_close(scaled.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3, 4)), torch.full((4,), DEVIATION), atol=1e-3, rtol=0)


def test_frames_and_video_are_two_forms_of_a_clip() -> None:
    clip, _ = world.sample(np.random.default_rng(0))
    assert np.abs(to_frames(to_video([clip]))[0].astype(int) - clip).max() <= 1


def test_the_tokenizer_reads_back_and_pads_as_t5_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(build_tokenizer(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids, mask = tokenize(tokenizer, [world.captions()[0], "", "a pink circle"])
    assert ids[0].tolist()[5:] == [1, 0, 0] and mask[0].tolist() == [1] * 6 + [0] * 2
    assert ids[1].tolist() == [1] + [0] * 7
    assert ids[2, 1] == tokenizer.unk_token_id
    longer, _ = tokenize(tokenizer, world.captions(), 6)
    assert len({tuple(row) for row in longer.tolist()}) == len(world.captions())
    assert tokenizer.unk_token_id not in longer


def test_an_iteration_alone_decides_its_random_numbers() -> None:
    first, second = random_of(1, 5), random_of(1, 5)
    assert first[0].random() == second[0].random()
    assert torch.equal(torch.rand(3, generator=first[1]), torch.rand(3, generator=second[1]))
    assert random_of(1, 6)[0].random() != random_of(1, 5)[0].random()
    rates = [learning_rate(1.0, i, 1000) for i in range(1000)]
    assert max(rates) == 1.0 and rates[0] < 0.02 and rates[-1] < 0.02


def test_minutes_go_on_counting_after_a_resume(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "stage")
    assert journal.resume() is None
    journal.save(iteration=1)
    state = Journal(tmp_path, "stage").resume()
    assert state is not None and state["iteration"] == 1
    torch.save({**state, "minutes": [5.0, 7.0]}, tmp_path / "stage.pt")
    again = Journal(tmp_path, "stage")
    again.resume()
    wall, cpu = again.minutes()
    assert 5 <= wall < 6 and 7 <= cpu < 8
