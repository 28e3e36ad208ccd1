"""Where conf/ and recipes/ live, and how recipes become Hydra's group `recipe`.

An installed wheel carries both folders inside the package, a source checkout beside it. The recipes of ./recipes in the
working folder are offered too, before shipped ones of the same name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.faults import Fault, Refused

PACKAGE = Path(__file__).parents[1]
MODELINE = "# yaml-language-server:"  # tells an editor which schema a file has


@dataclass(frozen=True)
class Recipe:
    """One file of recipes/: its first comment is its command, its second says what it does."""

    name: str
    path: Path
    command: str
    purpose: str


def folder(name: str) -> Path:
    """The shipped folder `conf` or `recipes`."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def groups() -> dict[str, list[str]]:
    """The conf groups and the members of each."""
    return {
        group.name: sorted(member.stem for member in group.glob("*.yaml"))
        for group in sorted(folder("conf").iterdir())
        if group.is_dir() and any(group.glob("*.yaml"))
    }


def recipes() -> dict[str, Recipe]:
    """Every recipe on offer, by name."""
    files = [path for place in (folder("recipes"), Path("recipes")) for path in sorted(place.glob("*.yaml"))]
    return dict(sorted({path.stem: _head(path) for path in files}.items()))


def parse(text: str) -> Any:
    """What a YAML text says, by libyaml where it is installed: it is ten times as fast. Raises yaml.YAMLError."""
    import yaml

    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe, its defaults list among them. Refused if the file is not a YAML mapping."""
    import yaml

    try:
        keys = parse(recipe.path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refused([Fault("recipe", f"{recipe.path} cannot be read: {error}", recipe.name)]) from error
    if not isinstance(keys, dict):
        raise Refused([Fault("recipe", f"{recipe.path} holds no keys", recipe.name)])
    return keys


def register(arguments: Sequence[str]) -> bool:
    """Offer the recipes as `+recipe=<name>`; whether one of them says by itself how Hydra runs it (hydra.mode).

    Raises Refused for an unreadable one only if `arguments` ask for it.
    """
    from hydra.core.config_store import ConfigStore

    store, own_mode = ConfigStore.instance(), False
    for recipe in recipes().values():
        try:
            keys = read(recipe)
        except Refused:
            if any(recipe.name in argument for argument in arguments):
                raise
            continue
        own_mode |= isinstance(hydra := keys.get("hydra"), dict) and "mode" in hydra
        store.store(group="recipe", name=recipe.name, node={"name": recipe.name, **keys}, package="_global_")
    return own_mode


def _head(path: Path) -> Recipe:
    with path.open(encoding="utf-8", errors="replace") as file:
        comments = (line for line in file if not line.startswith(MODELINE))
        lines = list(itertools.islice(comments, 2))
    command, purpose = (line.lstrip("#").strip() if line.startswith("#") else "" for line in (*lines, "", "")[:2])
    return Recipe(path.stem, path, command, purpose)
