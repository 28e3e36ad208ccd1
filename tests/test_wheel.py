"""The wheel holds what the project needs: built, unpacked elsewhere, run from another folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the project's wheel was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    # A copy, because setuptools leaves its build folder in the source tree.
    source = folder / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", str(source), *options], check=True, capture_output=True)
    (wheel,) = folder.glob("dit_runner-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "runner", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_recipes_and_groups_travel(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path)
    assert listed.returncode == 0, listed.stderr
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert recipe.stem in listed.stdout


def test_the_shipped_weights_and_the_templates_of_the_page_travel(installed: Path, tmp_path: Path) -> None:
    planned = run(installed, tmp_path, "+recipe=osp12_w8a8", "show=plan")
    assert planned.returncode == 0, planned.stderr
    assert "embedded" in planned.stdout
    packages = {path.parent for path in (ROOT / "runner").rglob("*.py")} - {ROOT / "runner"}
    for package in packages:
        assert (installed / package.relative_to(ROOT)).is_dir(), package
    for weights in (ROOT / "runner" / "embedded" / "weights").rglob("*.safetensors"):
        assert (installed / weights.relative_to(ROOT)).stat().st_size == weights.stat().st_size
    for template in (ROOT / "runner" / "desk" / "report").glob("*.jinja"):
        assert (installed / template.relative_to(ROOT)).is_file()


def test_the_installed_package_generates_a_clip(installed: Path, tmp_path: Path) -> None:
    prompt = "prompts.text=a red circle moving left"
    done = run(installed, tmp_path, "+recipe=osp12_float", prompt, "sampler.num_sampling_steps=2")
    assert done.returncode == 0, done.stderr
    (video,) = tmp_path.glob("outputs/osp12_float/*/sample/videos/prompt-000.mp4")
    assert video.stat().st_size > 0
