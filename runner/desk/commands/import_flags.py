"""`runner import-flags "torchrun ... --num_frames 93 ..."`: an old launch line as a recipe and its command.

What the guides' flags mean is data, one file of guides/ for each guide. A flag is
    NAME: KEY                                   its value is the key's
    NAME: {key: KEY, with: {KEY: VALUE}}        and sets others, too
    NAME: {switch: {...}, absent: {...}}        without a value: what it sets, and what holds where it is not given
    NAME: {values: {OLD: {...}}}                a choice: what each value sets
    NAME: {none: REASON}                        it has no counterpart
and `sets` is what the script does where a line is silent. Dashes and underscores in names are the same.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from runner.config.faults import Fault, Refused, nearest, spell
from runner.config.recipes import groups

USAGE = 'usage: runner import-flags [--name NAME] "torchrun ... inference.py --num_frames 93 ..."   (or - for stdin)'
GUIDES = Path(__file__).parent / "guides"
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate")
# What a launcher is told, and its counterpart. The number of processes is told apart, for it depends on the guide.
LAUNCHER_FLAGS = {"master_port": "parallel.master_port"}


@dataclass
class Line:
    """A launch line taken apart: environment, the launcher's flags, the script, and its flags with their values."""

    environment: dict[str, str] = field(default_factory=dict)
    launcher: dict[str, list[str]] = field(default_factory=dict)
    script: str = ""
    flags: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Imported:
    """The recipe that an old line becomes: groups and keys, and what must be said beside it."""

    guide: str
    groups: dict[str, str]
    keys: dict[str, Any] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)  # what has no counterpart
    not_yet: list[str] = field(default_factory=list)  # what this version refuses
    remarks: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Print the recipe (or write it to ./recipes with --name) and what the line says that it does not."""
    rest, name = list(arguments), "imported"
    given = "--name" in rest
    if given:
        at = rest.index("--name")
        name = "".join(rest[at + 1 : at + 2])
        del rest[at : at + 2]
        if not re.fullmatch(r"[\w.+-]+", name):
            raise Refused([Fault("--name", "expected letters, digits and . _ + - only", name)])
    if not rest:
        raise Refused([Fault("import-flags", USAGE)])
    text = sys.stdin.read() if rest == ["-"] else rest[0] if len(rest) == 1 else shlex.join(rest)
    imported = translate(parse(text))
    recipe = recipe_text(imported, name, text)
    if not given:
        print(recipe, end="")
        return 0
    file = Path("recipes") / f"{name}.yaml"
    if file.exists():
        raise Refused([Fault("--name", f"{file} is there already", name)])
    file.parent.mkdir(exist_ok=True)
    file.write_text(recipe, encoding="utf-8")
    print(f"recipe   {file}\ncommand  python -m runner +recipe={name}\n" + "\n".join(_notes(imported)))
    return 0


def parse(text: str) -> Line:
    """Take a launch line apart; lines before it that export variables count. Raises Refused if there is none."""
    line = Line()
    try:
        statements = [shlex.split(one, comments=True) for one in re.split(r"\n|;|&&", text.replace("\\\n", " "))]
    except ValueError as error:
        raise Refused([Fault("import-flags", f"the line does not parse: {error}")]) from error
    for words in statements:
        words = words[1:] if words[:1] == ["export"] else words
        while words and (assigned := ASSIGNMENT.fullmatch(words[0])):
            line.environment[assigned[1]] = assigned[2]
            words = words[1:]
        at = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
        if at is not None:
            line.script = words[at]
            launched = any(word.endswith(LAUNCHERS) for word in words[:at])
            line.launcher = _flags(words[:at]) if launched else {}
            line.flags = _flags(words[at + 1 :])
            return line
    raise Refused([Fault("import-flags", f"found no Python script in the line\n{USAGE}")])


def translate(line: Line) -> Imported:
    """The recipe of a launch line, by the guide that knows its script or else most of its flags."""
    guide = _guide(line)
    found = Imported(guide["name"], dict(guide["groups"]), dict(guide.get("sets", {})))
    known: Mapping[str, Any] = guide["flags"]
    for name, meaning in known.items():
        if isinstance(meaning, Mapping) and name not in line.flags:
            found.keys |= meaning.get("absent", {})
    for name, values in line.flags.items():
        if name not in known:
            meant = nearest(name, list(known))
            found.without.append(
                f"--{name}: the guide has no such flag" + (f"; did it mean --{meant}?" if meant else "")
            )
        else:
            _apply(found, name, known[name], values)
    if found.keys.get("quant.scheme") != "none" and "do_quant" in line.flags and "quant_type" not in line.flags:
        found.keys["quant.scheme"] = "w8a8"
    if "do_quant" in known and "do_quant" not in line.flags:
        found.keys["quant.scheme"] = "none"
    _launcher(found, line, bool(guide.get("sequence_parallel")))
    if line.environment:
        found.keys["hardware.env"] = line.environment
    if device := found.keys.pop("hardware.device", None):
        found.groups["hardware"] = str(device)
    scheme = found.keys.pop("quant.scheme", None)
    if scheme is not None:
        found.groups["quant"] = str(scheme)
    found.remarks += guide.get("remarks", [])
    found.not_yet = list(_not_yet(found))
    return found


def recipe_text(imported: Imported, name: str, line: str) -> str:
    """The recipe as YAML; its last comments are what the old line says and it does not."""
    import yaml

    tree: dict[str, Any] = {"defaults": [{f"override /{group}": member} for group, member in imported.groups.items()]}
    order = [*_schema_keys(), *imported.keys]
    for key in sorted(imported.keys, key=order.index):
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = imported.keys[key]
    body = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
    head = [f"# python -m runner +recipe={name}", f"# By the guide of {imported.guide}."]
    return "\n".join([*head, body.rstrip(), *(f"# {note}" for note in _notes(imported))]) + "\n"


def _notes(imported: Imported) -> Iterator[str]:
    for title, lines in (
        ("without a counterpart:", imported.without),
        ("not there yet, so that this version refuses the recipe:", imported.not_yet),
        ("what is done otherwise:", imported.remarks),
    ):
        if lines:
            yield title
            yield from (f"  {line}" for line in lines)


def _flags(words: Sequence[str]) -> dict[str, list[str]]:
    """--flag value ..., --flag=value and bare --flag, names with underscores; a number may be negative."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if equals else []
        elif name:
            found[name].append(word)
    return found


def _guide(line: Line) -> dict[str, Any]:
    """The guide whose script it is; of several, or of none, the one that knows most of the flags."""
    import yaml

    guides = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(GUIDES.glob("*.yaml"))]
    script = re.split(r"[/\\]", line.script)[-1]
    of_script = [guide for guide in guides if any(fnmatch(script, pattern) for pattern in guide["scripts"])]
    best = max(of_script or guides, key=lambda guide: len(line.flags.keys() & guide["flags"].keys()))
    if not of_script and 2 * len(line.flags.keys() & best["flags"].keys()) <= len(line.flags):
        names = ", ".join(guide["name"] for guide in guides)
        raise Refused([Fault("import-flags", f"expected a script of one of these guides: {names}", line.script)])
    return best


def _apply(found: Imported, name: str, meaning: Any, values: list[str]) -> None:
    """What one flag of a line means."""
    given = " ".join([f"--{name}", *values])
    if isinstance(meaning, str):
        meaning = {"key": meaning}
    if "none" in meaning:
        found.without.append(f"{given}: {meaning['none']}")
    elif "switch" in meaning:
        off = [value.lower() for value in values] in (["false"], ["0"], ["no"])
        found.keys |= meaning.get("absent", {}) if off else meaning["switch"]
    elif "values" in meaning:
        chosen = meaning["values"].get("".join(values))
        if chosen is None:
            found.without.append(f"{given}: expected {' or '.join(meaning['values'])}")
        else:
            found.remarks += [chosen["remark"]] if "remark" in chosen else []
            found.keys |= {key: value for key, value in chosen.items() if key != "remark"}
    elif not values:
        found.without.append(f"{given}: it has no value")
    else:
        found.keys |= {**meaning.get("with", {}), meaning["key"]: _value(meaning["key"], values, found.groups["model"])}


def _launcher(found: Imported, line: Line, sequence_parallel: bool) -> None:
    """How many processes, and how they share the work: guidance first, if the line asks for it, then the sequence."""
    for name, values in line.launcher.items():
        if name == "nproc_per_node":
            continue
        if name in LAUNCHER_FLAGS:
            found.keys[LAUNCHER_FLAGS[name]] = _value(LAUNCHER_FLAGS[name], values, None)
        else:
            found.without.append(" ".join([f"--{name}", *values]) + " of the launcher: the runner starts its processes")
    text = "".join(line.launcher.get("nproc_per_node", ["1"]))
    if not text.isdigit():
        found.without.append(f"--nproc_per_node {text}: expected a number")
        return
    processes = int(text)
    guided = 2 if found.keys.get("parallel.cfg") else 1
    if processes == 1:
        return
    if not sequence_parallel:
        found.without.append(f"--nproc_per_node {processes}: the script does the same in every process")
        return
    found.keys["parallel.world_size"] = processes
    if processes % guided:
        found.without.append(f"--nproc_per_node {processes} with --use_cfg_parallel: expected an even number")
    elif processes // guided > 1:
        found.keys["parallel.ulysses"] = processes // guided


def _value(key: str, values: list[str], model: str | None) -> Any:
    """The words after a flag, as the key's own type: a number or a truth value, several prompts, or the text itself."""
    import yaml

    from runner.config.schema import field

    if key.startswith("prompts."):
        return values if len(values) > 1 else values[0]
    text = " ".join(values)
    known = field(key, model)
    if known is not None and "str" in str(known.annotation):
        return text
    if known is None and not re.fullmatch(r"-?\d+(\.\d+)?|true|false", text, re.IGNORECASE):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _not_yet(found: Imported) -> Iterator[str]:
    """What this version's conf groups and schema do not know, or know and refuse."""
    from pydantic import TypeAdapter, ValidationError

    from runner.config.schema import AVAILABLE, field

    members = groups()
    for group, member in found.groups.items():
        if member not in members.get(group, []):
            yield f"{group}={member}"
    settled = {"hardware.device": found.groups["hardware"], **found.keys}
    for key, value in settled.items():
        known = field(key, found.groups.get("model"))
        if known is None:
            yield f"{key}={spell(value)}: there is no such key"
        elif key in AVAILABLE and value not in AVAILABLE[key]:
            yield f"{key}={spell(value)}"
        else:
            try:
                TypeAdapter(known.rebuild_annotation()).validate_python(value, strict=True)
            except ValidationError as error:
                yield f"{key}={spell(value)}: {error.errors()[0]['msg']}"


def _schema_keys() -> list[str]:
    from runner.config.schema import keys

    return list(keys())
