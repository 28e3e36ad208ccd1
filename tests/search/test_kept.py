"""What a search keeps of its trials: they are made once, in their order, and timed once by a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.cache.trial import Trial
from runner.search.kept import Found, Kept

A, B, C = ({"prompt": "a red boat", "ranges": [None, [0, n]]} for n in (1, 2, 3))


class Maker:
    """Makes what is asked for, each time in other seconds, and counts."""

    def __init__(self, kept: Kept) -> None:
        self.kept, self.made = kept, 0

    def __call__(self, asked: dict[str, Any]) -> Found:
        return self.kept.get(asked, self.make)

    def make(self) -> Found:
        self.made += 1
        return {"seconds": {"1": 0.1 * self.made}, "forwards": 8}, {"latents": torch.arange(4.0)}


def test_what_was_cut_off_goes_on_with_what_it_has(tmp_path: Path) -> None:
    first = Maker(Kept(tmp_path))
    before = [first(A), first(B)]
    again = Maker(Kept(tmp_path))
    for (found, tensors), (known, known_tensors) in zip([again(A), again(B)], before, strict=True):
        assert found == known and torch.equal(tensors["latents"], known_tensors["latents"])
    assert again.made == 0 and again.kept.measurements == first.kept.measurements
    again(C)
    assert again.made == 1


def test_another_question_is_asked_anew(tmp_path: Path) -> None:
    first = Maker(Kept(tmp_path))
    first(A), first(B)
    again = Maker(Kept(tmp_path))
    again(A), again(C)
    assert again.made == 1 and Maker(Kept(tmp_path)).kept.get(A, pytest.fail)


def test_a_half_written_trial_is_made_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    Maker(kept)(A)
    (tmp_path / "trials" / "0000").rename(tmp_path / "trials" / "0000.part")
    again = Maker(Kept(tmp_path))
    again(A)
    assert again.made == 1


def test_equal_questions_take_the_times_that_were_measured(tmp_path: Path) -> None:
    first = Maker(Kept(tmp_path / "first"))
    first(A), first(B)
    again = Maker(Kept(tmp_path / "again", first.kept.measurements))
    again(A)
    assert again(C)[0]["seconds"] == {"1": 0.2}, "another question was not measured before"
    assert [each["seconds"] for each in again.kept.measurements] == [{"1": 0.1}, {"1": 0.2}]
    assert again.made == 2, "times are not results: latents are made"


def test_a_trial_comes_back_as_it_was() -> None:
    trial = Trial(torch.rand(1, 4, 2, 2, 2), torch.empty(0), {3: 0.25, 4: 0.5}, 7, {2: torch.rand(1, 4, 2, 2, 2)})
    found, tensors = trial.packed()
    back = Trial.unpacked(found, tensors)
    assert (back.seconds, back.forwards, back.predictions.keys()) == (trial.seconds, 7, {2})
    assert torch.equal(back.latents, trial.latents) and torch.equal(back.predictions[2], trial.predictions[2])
