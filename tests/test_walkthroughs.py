"""CONTRIBUTING's walk-throughs, done in a copy of the tree: a scheme, a model and a stage, each by the files it names.

The scheme has W8A8's arithmetic under another name, the model is Stable Diffusion 3 under another name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "runner/embedded/weights/sd3"
STAGE = '''"""measure: how many prompts there are."""

from pathlib import Path

from runner.bench.context import Context


def run(context: Context, draft: Path) -> None:
    (draft / "measure.json").write_text(str(len(context.config["prompts"]["text"])))
'''
ROW = '    Stage("measure", version=1, writes="how many prompts there are", builds_on=("sample",)),\n)\n'


class Tree:
    """A copy of what runs, and the files that were touched in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.touched = root, list[str]()
        for name in ("conf", "recipes"):
            shutil.copytree(ROOT / name, root / name)
        shutil.copytree(ROOT / "runner", root / "runner", ignore=shutil.ignore_patterns("weights", "__pycache__"))

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_text(text, encoding="utf-8")
        self.touched.append(name)

    def read(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.read(name)
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        self.write(name, text.replace(old, new))

    def run(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.root), "COLUMNS": "160"}
        command = [sys.executable, "-m", "runner", *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = Tree(tmp_path_factory.mktemp("tree"))
    # a scheme
    tree.write("runner/quant/w8a16.py", tree.read("runner/quant/w8a8.py"))
    entry = '    "w8a16": Scheme("runner.quant.w8a16", tag="W8A16", need="range"),\n'
    start = "SCHEMES: dict[str, Scheme] = {\n"
    tree.edit("runner/quant/rules.py", start, start + entry)
    tree.edit("runner/config/schema.py", '"quant.scheme": ("none",', '"quant.scheme": ("none", "w8a16",')
    tree.write("conf/quant/w8a16.yaml", tree.read("conf/quant/w8a8.yaml").replace("w8a8", "w8a16"))
    # a model
    for file in sorted((ROOT / "runner/model/sd3").glob("*.py")):
        tree.write(
            f"runner/model/mine/{file.name}", file.read_text(encoding="utf-8").replace("model.sd3", "model.mine")
        )
    keys = 'class Mine(SD3):\n    """Mine."""\n\n    name: Literal["mine"] = Field(description=NAME)  # type: ignore\n'
    tree.write("runner/config/models.py", f"{tree.read('runner/config/models.py')}\n\n{keys}")
    tree.edit("runner/config/schema.py", "import OSP12,", "import OSP12, Mine,")
    tree.edit("runner/config/schema.py", "model: OSP12 |", "model: OSP12 | Mine |")
    tree.write("conf/model/mine.yaml", tree.read("conf/model/sd3.yaml").replace("name: sd3", "name: mine"))
    # a stage
    tree.write("runner/stages/measure.py", STAGE)
    table = tree.read("runner/desk/plan/stages.py")
    assert table.endswith("\n)\n")
    tree.write("runner/desk/plan/stages.py", table.removesuffix(")\n") + ROW)
    return tree


ARGUMENTS = (
    *("model=mine", "quant=w8a16", f"model.checkpoint={WEIGHTS}", "prompts.text=[a red circle on the left]"),
    *("model.height=64", "model.width=64", "sampler.num_sampling_steps=4", "timing.repeats=0"),
)


def test_contributing_names_every_file_that_is_touched(tree):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    missing = [name for name in tree.touched if f"`{name}`" not in text and "loading.py" not in name]
    assert not missing, missing


def test_the_desk_plans_all_three(tree):
    plan = tree.run(*ARGUMENTS, "show=plan")
    assert all(stage in plan for stage in ("dump", "calibrate", "quantize", "sample", "measure"))
    assert "w8a16" in tree.run("--help") and "mine" in tree.run("--help")


@pytest.mark.slow
def test_all_three_run_and_are_reused(tree):
    tree.run(*ARGUMENTS)
    again = tree.run(*ARGUMENTS)
    assert "measure" in again and " run " not in again.partition("page ")[0].partition("stage ")[2]
    first, second = sorted(file.parent for file in (tree.root / "outputs").glob("*/*/run.json"))
    assert (first / "measure/measure.json").read_text() == "1"
    assert json.loads((second / "run.json").read_text())["config"]["quant"]["scheme"] == "w8a16"
    assert (first / "quantize/quant_model_weight_w8a16.safetensors").is_file()
