"""What a pipeline of diffusers takes, read from its source: the desk asks, and does not import diffusers.

Importing diffusers takes seconds and imports torch; its files say the same.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REQUIRED = object()  # the default of an argument that has none
UNKNOWN = object()  # a default that is no constant


@cache
def call(class_name: str) -> dict[str, Any] | None:
    """Arguments of the call of a pipeline, with their defaults; None where the installed diffusers has no such class.

    A call that a class inherits is looked for in the classes that it is made of.
    """
    found = _class(class_name)
    if found is None:
        return None
    for statement in found.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__call__":
            return _defaults(statement.args)
    inherited = (call(base.id) for base in found.bases if isinstance(base, ast.Name))
    return next((arguments for arguments in inherited if arguments), {})


def _defaults(arguments: ast.arguments) -> dict[str, Any]:
    names = [argument.arg for argument in arguments.args[1:]]
    values = [*[REQUIRED] * (len(names) - len(arguments.defaults)), *map(_constant, arguments.defaults)]
    keywords = [argument.arg for argument in arguments.kwonlyargs]
    of_keywords = [REQUIRED if default is None else _constant(default) for default in arguments.kw_defaults]
    return dict(zip([*names, *keywords], [*values, *of_keywords], strict=True))


def _constant(default: ast.expr) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:
        return UNKNOWN


def _class(name: str) -> ast.ClassDef | None:
    """The definition of a pipeline class, wherever in diffusers it stands."""
    spec = find_spec("diffusers")
    if spec is None or not spec.submodule_search_locations:
        return None
    for file in sorted(Path(spec.submodule_search_locations[0]).joinpath("pipelines").rglob("pipeline_*.py")):
        text = file.read_text(encoding="utf-8")
        if f"\nclass {name}(" in text:
            return next(n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == name)
    return None
