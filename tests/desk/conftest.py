"""A configuration as the front door composes it, without a process of its own: half a second instead of two."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from runner.__main__ import _open
from runner.config import recipes
from runner.config.precedence import explicit
from runner.desk.check.config import Checked, check
from runner.desk.run import launch

Check = Callable[..., Checked]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test works in a folder of its own, and leaves no recipe of that folder behind."""
    monkeypatch.chdir(tmp_path)
    yield
    ConfigStore.instance().repo.pop("recipe", None)


@pytest.fixture
def journal(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stand_in.py, which takes the worker's place, did, line by line."""
    file = tmp_path_factory.mktemp("bench") / "journal"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, ROOT))))
    monkeypatch.setenv("JOURNAL", str(file))
    monkeypatch.setattr(launch, "WORKER", "stand_in")
    return file


@pytest.fixture
def at(tiny_checkpoint: Path) -> str:
    """The argument that names the tiny checkpoint."""
    return f"model.checkpoint={tiny_checkpoint}"


@pytest.fixture
def checked(tiny_checkpoint: Path) -> Check:
    """`checked(*arguments)`: what this command line becomes, on the tiny checkpoint if it names none."""

    def on_tiny(*arguments: str) -> Checked:
        named = any("model.checkpoint=" in argument for argument in arguments)
        return front_door(*arguments, *([] if named else [f"model.checkpoint={tiny_checkpoint}"]))

    return on_tiny


def front_door(*arguments: str) -> Checked:
    """Compose and check, as runner.__main__ does."""
    recipes.register(arguments)
    overrides = _open(arguments)
    with initialize_config_dir(str(recipes.folder("conf")), version_base="1.3"):
        return check(compose("config", overrides), explicit(overrides))


@pytest.fixture
def composed() -> Check:
    """`composed(*arguments)`: the same, with nothing added."""
    return front_door


@pytest.fixture(scope="session")
def w8a8(tiny_checkpoint: Path) -> dict[str, Any]:
    # bf16 on every machine, so that what depends on it is the same
    return front_door("+recipe=osp12_w8a8", f"model.checkpoint={tiny_checkpoint}", "hardware.compute=bf16").config


@pytest.fixture
def config(w8a8: dict[str, Any]) -> dict[str, Any]:
    """The checked configuration of the main recipe, to alter at will."""
    return copy.deepcopy(w8a8)


@pytest.fixture
def opensora12(tiny_opensora12: Path) -> Check:
    """`opensora12(*arguments)`: what this command line becomes, on the tiny Open-Sora 1.2."""
    return lambda *arguments: front_door("model=opensora12", f"model.checkpoint={tiny_opensora12}", *arguments)
