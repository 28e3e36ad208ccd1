"""What is offered to somebody who types: the next word to a shell, the keys of a recipe to an editor.

runner schema > runner.schema.json
"""

from __future__ import annotations

import json
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from runner.config import recipes
from runner.config.faults import spell
from runner.config.precedence import defaults
from runner.config.schema import AVAILABLE, Config, architectures, field
from runner.desk.plan.stages import STAGES
from runner.model import rules_of

OPTIONS = ("--help", "--cfg", "--info", "--multirun", "--resolve", "--package")
# What stands in a recipe for a value that comes from elsewhere: it must be given, or it is another key's.
ELSEWHERE = {"type": "string", "pattern": r"^\?\?\?$|\$\{.+\}"}


def main(arguments: Sequence[str]) -> int:
    """Print the JSON schema of a recipe."""
    if arguments:
        print("usage: python -m runner schema > runner.schema.json")
        return 0 if {"-h", "--help"} & set(arguments) else 2
    print(json.dumps(editor_schema(), indent=1, ensure_ascii=False))
    return 0


def choices(key: str) -> list[Any]:
    """Every value that a key can have, if they can be listed and are there already; else []."""
    if key in AVAILABLE:
        return list(AVAILABLE[key])
    if key in ("until", "redo"):
        return [stage.name for stage in STAGES]
    if key == "sampler.sample_method":
        methods = (rules_of({"name": name}).SAMPLE_METHODS for name in architectures())
        return list(dict.fromkeys(method for some in methods for method in some))
    if key == "model.name":
        return list(architectures())
    found = field(key)
    return _listed(found.annotation) if found else []


def _listed(kind: Any) -> list[Any]:
    if kind is bool:
        return [True, False]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        options = [_listed(option) if option is not type(None) else [None] for option in get_args(kind)]
        return sum(options, []) if all(options) else []
    return []


def completions(line: str, commands: Sequence[str]) -> list[str]:
    """What may come next on a command line, beside the groups, members and keys that Hydra finds."""
    words = line.split()
    word = words[-1] if words and not line.endswith(" ") else ""
    place = len(words) - bool(word)
    if word.startswith("-"):
        return [option for option in OPTIONS if option.startswith(word)]
    if "=" in word:
        key = word.partition("=")[0]
        found = [f"{key}={spell(value)}" for value in choices(key.lstrip("+"))]
    else:
        found = list(commands) if place == 1 else []
    return [offer for offer in found if offer.startswith(word)]


def complete(commands: Sequence[str]) -> bool:
    """Answer a shell that asks for completions; whether Hydra has nothing to add."""
    line = os.environ.get("COMP_LINE", "")
    print("\n".join(completions(line, commands)))
    return line.split()[-1:] != [] and line.split()[-1].startswith("-") and not line.endswith(" ")


def _either(kinds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The properties that any of several sections has; of one that they have in common, each form."""
    found: dict[str, Any] = {}
    for kind in kinds:
        for name, entry in kind["properties"].items():
            known = found.setdefault(name, entry)
            if {**known, "description": ""} != {**entry, "description": ""}:
                found[name] = {"description": known["description"], "anyOf": [known, entry]}
    return found


def editor_schema() -> dict[str, Any]:
    """JSON schema of a recipe's YAML: the keys that are there, their types and meanings, the defaults list."""
    whole = Config.model_json_schema()
    sections, values = whole.pop("$defs"), defaults()

    def section(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        properties = {}
        for name, entry in tree["properties"].items():
            key = prefix + name
            if "$ref" in entry:
                properties[name] = section(sections[entry["$ref"].rpartition("/")[2]], f"{key}.")
                continue
            if "discriminator" in entry:  # a section of each architecture
                kinds = [sections[one["$ref"].rpartition("/")[2]] for one in entry["oneOf"]]
                properties[name] = section({"properties": _either(kinds)}, f"{key}.")
                continue
            kept = {word: value for word, value in entry.items() if word not in ("title", "description")}
            listed = {"enum": choices(key)} if choices(key) and key != "redo" else kept
            properties[name] = {"description": entry["description"], "anyOf": [listed, ELSEWHERE]}
            if values.get(key) is not None:
                properties[name]["default"] = values[key]
        return {"type": "object", "additionalProperties": False, "properties": properties}

    members = {
        f"{prefix}/{group}": {"enum": names}
        for group, names in recipes.groups().items()
        for prefix in ("override ", "")
    }
    entry = {
        "type": "object",
        "properties": members,
        "patternProperties": {"hydra/": {}},
        "additionalProperties": False,
    }
    root = section(whole)
    root["properties"]["defaults"] = {
        "description": "the recipe that this one builds on, members of groups, and where this file stands (_self_)",
        "type": "array",
        "items": {"anyOf": [{"type": "string"}, entry]},
    }
    root["properties"]["hydra"] = {"description": "how jobs of a sweep are started", "type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "a recipe of dit-runner", **root}
