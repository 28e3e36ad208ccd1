"""docs/guides.md says of every flag what import-flags does with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runner.config.faults import spell
from runner.config.precedence import leaves
from runner.config.recipes import folder
from runner.desk.commands.guide_tables import PLACE, defaults, filled, table
from runner.desk.commands.import_flags import GUIDES

PAGE = Path(__file__).parents[3] / "docs/guides.md"
NAMES = sorted(file.stem for file in GUIDES.glob("*.yaml"))


def test_the_page_is_what_the_files_make():
    page = PAGE.read_text(encoding="utf-8")
    made = "python -m runner.desk.commands.guide_tables docs/guides.md"
    assert filled(page) == page, f"docs/guides.md is older than what it is made of: {made}"
    assert sorted(place[2] for place in PLACE.finditer(page)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_has_a_row_and_every_note_a_flag(name):
    guide = yaml.safe_load((GUIDES / f"{name}.yaml").read_text(encoding="utf-8"))
    rows = [line for line in table(name).splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(guide["flags"])
    assert all(line.count(" | ") == 3 for line in rows)
    assert guide["notes"].keys() <= guide["flags"].keys()


@pytest.mark.parametrize("model", ["osp12", "opensora12", "sd3"])
def test_the_defaults_are_those_of_the_composed_configuration(model):
    with initialize_config_dir(str(folder("conf")), version_base="1.3"):
        whole = OmegaConf.to_container(compose("config", [f"model={model}"]), resolve=False)
    truth = dict(leaves(whole))
    told = defaults(model)
    assert told["seed"] == f"`{truth['seed']}`" and len(told) > 50
    assert {key: f"`{spell(truth[key])}`" for key in told} == told
