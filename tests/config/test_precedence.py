"""Command line, recipe, the checkpoint's own defaults.yaml, the group's default: in this order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from runner.config.faults import Refused


@pytest.fixture
def own(tiny_checkpoint, tmp_path):
    """`own(tree)`: a checkpoint whose defaults.yaml holds `tree`."""

    def make(tree: dict) -> Path:
        root = tmp_path / "own"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tiny_checkpoint.parent, root)
        (root / tiny_checkpoint.name / "defaults.yaml").write_text(yaml.safe_dump(tree))
        return root / tiny_checkpoint.name

    return make


def recipe(**keys) -> None:
    Path("recipes").mkdir(exist_ok=True)
    Path("recipes/mine.yaml").write_text("# c\n# p\n" + yaml.safe_dump(keys))


def test_each_beats_the_next(checked, own):
    at = f"model.checkpoint={own({'model': {'num_frames': 9}})}"
    recipe(model={"num_frames": 13})
    by_hand = checked("+recipe=mine", "model.num_frames=17", at)
    by_recipe = checked("+recipe=mine", at)
    by_checkpoint = checked(at)
    by_group = checked(f"model.checkpoint={own({})}")
    found = [(run.config["model"]["num_frames"], run.origin["model.num_frames"]) for run in
             (by_hand, by_recipe, by_checkpoint, by_group)]  # fmt: skip
    assert found == [(17, "command line"), (13, "recipe"), (9, "checkpoint"), (93, "default")]


def test_setting_the_default_value_is_setting_it(checked, own):
    """A key that is given beats the checkpoint even where it says what the group says."""
    at = f"model.checkpoint={own({'model': {'num_frames': 9}})}"
    assert checked("model.num_frames=93", at).config["model"]["num_frames"] == 93
    recipe(model={"num_frames": 93})
    assert checked("+recipe=mine", at).config["model"]["num_frames"] == 93


def test_choosing_a_member_sets_its_name_alone(checked, own):
    at = f"model.checkpoint={own({'quant': {'scheme': 'w8a8', 'observer': 'mse'}})}"
    assert checked(at).config["quant"]["scheme"] == "w8a8"
    chosen = checked("quant=none", at)
    assert (chosen.config["quant"]["scheme"], chosen.origin["quant.scheme"]) == ("none", "command line")
    assert (chosen.config["quant"]["observer"], chosen.origin["quant.observer"]) == ("mse", "checkpoint")
    recipe(defaults=[{"override /quant": "none"}])
    chosen = checked("+recipe=mine", at)
    assert (chosen.config["quant"]["scheme"], chosen.origin["quant.scheme"]) == ("none", "recipe")


def test_recipes_that_build_on_recipes(checked, own):
    at = f"model.checkpoint={own({'quant': {'scheme': 'none'}, 'model': {'num_frames': 9}})}"
    recipe(defaults=["osp12_w8a8", "_self_"], model={"num_frames": 13})
    run = checked("+recipe=mine", at)
    assert run.config["name"] == "mine"
    assert (run.config["quant"]["scheme"], run.origin["quant.scheme"]) == ("w8a8", "recipe")
    assert run.config["model"]["num_frames"] == 13


def test_command_line_beats_a_recipes_choice_of_member(checked):
    assert checked("+recipe=osp12_w8a8", "quant=none").config["quant"]["scheme"] == "none"


def test_what_follows_another_key_follows_the_checkpoints_value(checked, own):
    at = f"model.checkpoint={own({'model': {'keep_float': ['*mine*']}})}"
    assert checked(at).config["quant"]["exclude"] == ["*mine*"]


def test_prompts_file_of_a_checkpoint_lies_in_it(checked, own):
    folder = own({"prompts": {"text": "prompts.txt"}})
    (folder / "prompts.txt").write_text("a red circle\n")
    assert checked(f"model.checkpoint={folder}").config["prompts"]["text"] == ["a red circle"]


@pytest.mark.parametrize(
    "tree",
    [{"output": "/elsewhere"}, {"hardware": {"device": "cuda"}}, {"model": {"checkpoint": "other"}}, {"name": "x"}],
)
def test_not_for_a_checkpoint_to_say(checked, own, tree):
    with pytest.raises(Refused, match="not for a checkpoint to set"):
        checked(f"model.checkpoint={own(tree)}")


@pytest.mark.parametrize("text", ["a: [", "- a", "\xff"])
def test_defaults_that_are_no_keys(checked, own, text):
    folder = own({})
    (folder / "defaults.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(Refused, match="defaults.yaml"):
        checked(f"model.checkpoint={folder}")


def test_every_key_has_an_origin(checked):
    run = checked("+recipe=osp12_w8a8", "seed=5")
    assert set(run.origin.values()) <= {"command line", "recipe", "checkpoint", "default", "machine"}
    assert run.origin["hardware.compute"] == "machine"
    assert (
        run.origin["seed"],
        run.origin["sample.compare"],
        run.origin["model.fps"],
        run.origin["quant.observer"],
    ) == (
        "command line",
        "recipe",
        "checkpoint",
        "default",
    )
