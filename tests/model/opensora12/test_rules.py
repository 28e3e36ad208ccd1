"""What the desk refuses and settles for Open-Sora 1.2, without torch."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from runner.model.opensora12 import rules

MODEL = {
    **{"num_frames": 51, "tables": "upstream", "resolution": "240p", "aspect_ratio": "9:16", "height": None},
    **{"width": None, "align": 5, "loop": 1, "micro_frame_size": 17},
}


def test_no_torch():
    code = "import sys, runner.model.opensora12.rules; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({"num_frames": "2s"}, (51, 240, 426)),
        ({"num_frames": "2s", "tables": "enflame"}, (40, 240, 426)),
        ({"num_frames": "16x", "aspect_ratio": "1:1", "resolution": "720p"}, (816, 960, 960)),
        ({"tables": "enflame", "aspect_ratio": "1:1", "resolution": "720p"}, (51, 720, 720)),
        ({"num_frames": "7", "height": 100, "width": 50, "resolution": "none"}, (7, 100, 50)),
    ],
)
def test_names_become_numbers(given, becomes):
    model = {**MODEL, **given}
    assert not list(rules.faults(model))
    settled = {**model, **rules.settled(model)}
    assert (settled["num_frames"], settled["height"], settled["width"]) == becomes


@pytest.mark.parametrize(
    ("given", "key", "says"),
    [
        ({"num_frames": "3s"}, "num_frames", "expected a number or one of 1x, 2x"),
        ({"num_frames": 0}, "num_frames", "expected at least 1"),
        ({"resolution": "145p"}, "resolution", "expected one of 144p"),
        ({"aspect_ratio": "2:7"}, "aspect_ratio", "240p has 3:8"),
        ({"resolution": "2880"}, "aspect_ratio", "none: give height and width"),
        ({"height": 64}, "width", "expected a number of pixels, since height is given"),
        ({"align": 4}, "align", "expected 5"),
        (
            {"num_frames": 17, "loop": 2, "condition_frame_length": 5},
            "condition_frame_length",
            "expected fewer than the 5 latent frames",
        ),
    ],
)
def test_what_is_refused(given, key, says):
    found = dict(rules.faults({**MODEL, **given}))
    assert list(found) == [key] and says in found[key]


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "words.png").write_text("no image")
    return tmp_path


def fold(texts, references=None, strategies=None, **model):
    return rules.with_references(texts, references, strategies, {**MODEL, **model})


def test_prompts_carry_their_references(files):
    a, b = f"{files}/a.png", f"{files}/b.png"
    (text, other), wrong = fold(["a sea", "a tree"], f"{a};{b}", "0;0,1,0,-1,1")
    assert not wrong and text == "a sea" + json.dumps({"reference_path": f"{a};{b}", "mask_strategy": "0;0,1,0,-1,1"})
    assert rules.files([text, other]) == [files / "a.png", files / "b.png"] * 2
    plain = [{"reference": 0}, {"reference": 1, "target_start": -1}]
    assert fold(["a sea"], f"{a};{b}", plain)[0] == ['a sea' + json.dumps({
        "reference_path": f"{a};{b}", "mask_strategy": "0,0,0,0,1,0.0;0,1,0,-1,1,0.0"})]  # fmt: skip
    each, wrong = fold(["a sea", "a tree"], [a, None], ["0", None])
    assert not wrong and each[1] == "a tree"
    own, wrong = fold([f'a sea{{"reference_path": "{b}"}}'], a, "0")
    assert not wrong and rules.files(own) == [files / "b.png"]  # what the prompt says itself comes first


@pytest.mark.parametrize(
    ("references", "strategy", "key", "says"),
    [
        ("a.png", None, "mask_strategy", 'the reference has no effect; "0" makes it the first frame'),
        ("c.png", "0", "references", "there is no file"),
        ("words.png", "0", "references", "cannot be read as an image"),
        ("https://example.com/a.png", "0", "references", "nothing is fetched from a network"),
        ("a.png", "0,1", "mask_strategy", "asks for reference 1 of 1"),
        ("a.png", "0,0,0,15", "mask_strategy", "starts at frame 15 of 15 latent frames"),
        ("a.png", "0;1,0", "mask_strategy", "is for loop 1, and model.loop is 1"),
        ("a.png", "zero", "mask_strategy", "is not of the form loop,reference"),
        ("a.png", [{"frame": 1}], "mask_strategy", "expected keys among"),
        (["a.png", "a.png"], "0", "references", "expected 1 entries"),
    ],
)
def test_references_that_cannot_be(files, monkeypatch, references, strategy, key, says):
    monkeypatch.chdir(files)
    _, wrong = fold(["a sea"], references, strategy)
    assert any(name == key and says in sentence for name, sentence in wrong), wrong


@pytest.mark.parametrize("text", ['a sea{"reference_path": 5}', "a sea {waves}", "first |1| a sea"])
def test_prompts_that_do_not_parse(text):
    _, [(key, _)] = fold([text])
    assert key == "text"
