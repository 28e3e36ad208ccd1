"""Recipes: shipped ones, the user's own, unknown and unreadable ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.faults import Refused
from runner.config.recipes import groups, recipes

OWN = "# python -m runner +recipe=mine\n# What mine does.\nseed: 7\n"


def test_recipes_of_the_working_folder_come_along():
    shipped = recipes()
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(OWN)
    found = recipes()
    assert found.keys() - shipped.keys() == {"mine"}
    assert (found["mine"].command, found["mine"].purpose) == ("python -m runner +recipe=mine", "What mine does.")


def test_a_line_for_the_editor_may_come_before_the_command():
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text("# yaml-language-server: $schema=../runner.schema.json\n" + OWN)
    Path("recipes/bare.yaml").write_text("seed: 7")
    found = recipes()
    assert (found["mine"].command, found["mine"].purpose) == ("python -m runner +recipe=mine", "What mine does.")
    assert (found["bare"].command, found["bare"].purpose) == ("", "")


def test_own_recipe_runs_under_its_name(checked):
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(OWN)
    config = checked("+recipe=mine").config
    assert (config["name"], config["seed"]) == ("mine", 7)


def test_own_recipe_stands_before_a_shipped_one(checked):
    Path("recipes").mkdir()
    Path("recipes/osp12_w8a8.yaml").write_text(OWN)
    assert checked("+recipe=osp12_w8a8").config["seed"] == 7


@pytest.mark.parametrize("content", ["a: [", "- a", "{{ jinja }}: x: y"])
def test_unreadable_recipe_matters_only_when_asked_for(checked, content):
    Path("recipes").mkdir()
    Path("recipes/broken.yaml").write_text(content)
    assert checked("+recipe=osp12_w8a8").config["name"] == "osp12_w8a8"
    with pytest.raises(Refused, match="broken.yaml"):
        checked("+recipe=broken")


def test_groups_are_the_folders_of_conf():
    assert groups().keys() == {"model", "hardware", "quant", "cache", "sampler", "parallel"}
    assert groups()["quant"] == ["none", "w8a8"]
