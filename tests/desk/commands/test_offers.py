"""What a shell completes and what an editor accepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from runner.__main__ import COMMANDS, door
from runner.config.precedence import defaults
from runner.config.recipes import folder
from runner.config.schema import Config, keys
from runner.desk.commands.offers import choices, completions, editor_schema
from runner.desk.plan.graph import with_values

ROOT = Path(__file__).parents[3]
RECIPES = sorted(folder("recipes").glob("*.yaml"))


# a shell


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("runner rep", "report"),
        ("runner +recipe=osp12_w8a8 show=", "show=plan"),
        ("runner model.dtype=b", "model.dtype=bf16"),
        ("runner sampler.sample_method=Eul", "sampler.sample_method=EulerDiscrete"),
        ("runner sample.compare=", "sample.compare=false"),
        ("runner until=q", "until=quantize"),
        ("runner --h", "--help"),
    ],
)
def test_what_the_schema_knows_is_offered(line, offered):
    assert offered in completions(line, list(COMMANDS))


def test_what_is_not_there_yet_is_not_offered():
    assert completions("runner quant.scheme=w4", list(COMMANDS)) == []
    assert completions("runner +recipe=osp12_w8a8 rep", list(COMMANDS)) == []  # a command comes first


def test_every_listed_choice_is_one_that_the_schema_takes(config, opensora12):
    listed = {key: choices(key) for key in keys()}
    bases = {"osp12": config, "opensora12": opensora12().config}
    assert listed.pop("model.name") == [*bases, "sd3", "diffusers"]
    known = {key for name in bases for key in keys(name)}
    for key, value in ((key, value) for key, values in listed.items() if key in known for value in values):
        Config.model_validate(with_values(next(bases[name] for name in bases if key in keys(name)), {key: value}))
    assert {"model.dtype", "quant.observer", "sample.save", "show", "until"} <= {key for key in listed if listed[key]}


def test_the_console_script_completes_in_bash(tmp_path):
    """The script as pip makes it, in a real shell that has loaded the completion."""
    script = tmp_path / "bin" / "runner"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom runner.__main__ import main\nmain()\n")
    script.chmod(0o755)
    lines = [
        "runner +recipe=osp12_29",
        "runner quant=w",
        "runner model.num_f",
        "runner show=p",
        "runner pru",
        "runner --h",
    ]
    ask = """
    eval "$(runner -sc install=bash)"
    complete -p runner > /dev/null || exit 1
    while read -r COMP_LINE; do
        COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
        hydra_bash_completion < /dev/null
        echo "${COMPREPLY[*]}"
    done
    """
    env = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", ask], input="\n".join(lines) + "\n", env=env, capture_output=True, text=True)
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.splitlines() == [
        "+recipe=osp12_29x480p_w8a8 +recipe=osp12_29x720p_w8a8",
        "quant=w8a8",
        "model.num_frames=",
        "show=plan",
        "prune",
        "--help",
    ]


# an editor


@pytest.fixture(scope="module")
def editor():
    schema = editor_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_to_an_editor(editor, path):
    editor.validate(yaml.safe_load(path.read_text()) or {})


@pytest.mark.parametrize(
    "recipe",
    [
        {"model": {"num_frame": 9}},
        {"modle": {"num_frames": 9}},
        {"model": {"batch_size": "nine"}},
        {"model": {"dtype": "bf61"}},
        {"model": {"tile_overlap_factor": 1.5}},
        {"quant": {"scheme": "w4a16"}},
        {"sampler": {"sample_method": "Euler"}},
        {"prompts": {"text": 5}},
        {"until": "dmp"},
        {"defaults": [{"override /quant": "w8a9"}]},
        {"defaults": [{"override /quantt": "w8a8"}]},
    ],
)
def test_what_the_desk_refuses_an_editor_underlines(editor, recipe):
    assert not editor.is_valid(recipe)


def test_values_from_elsewhere_are_valid(editor):
    editor.validate({"model": {"checkpoint": "???", "height": "${model.width}"}, "prompts": {"text": ["a", "b"]}})


def test_an_editor_is_told_every_key_with_its_meaning_and_default(editor):
    found, values = {}, defaults()

    def gather(properties, prefix=""):
        for name, entry in properties.items():
            if "properties" in entry:
                gather(entry["properties"], f"{prefix}{name}.")
            else:
                found[prefix + name] = entry

    gather(editor.schema["properties"])
    assert found.keys() - {"defaults", "hydra"} == set(keys())
    for key, meaning in keys().items():
        assert found[key]["description"] == meaning and found[key].get("default") == values.get(key)


def test_schema_is_a_command(capsys):
    assert door(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "a recipe of dit-runner"
    assert door(["schema", "more"]) == 2
