"""Write the flag tables of docs/guides.md from the files that import-flags reads.

    python -m runner.desk.commands.guide_tables docs/guides.md

A table stands between `<!-- table NAME -->` and `<!-- end -->`, NAME being a file of guides/. A test holds the page to
what this makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.config.faults import spell
from runner.config.precedence import leaves
from runner.config.recipes import folder
from runner.desk.commands.import_flags import GUIDES

PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
LONGEST = 40  # characters of a default in a cell


def table(name: str) -> str:
    """The Markdown table of one guide: each flag, its key, the key's default here, a note."""
    guide = _read(GUIDES / f"{name}.yaml")
    default = defaults(str(guide["groups"]["model"]))
    notes: Mapping[str, str] = guide.get("notes", {})
    lines = ["| flag | key | default here | note |", "|---|---|---|---|"]
    for flag, meaning in guide["flags"].items():
        said, given = _meaning(meaning), _key(meaning)
        remarks = [*said[1], *([notes[flag]] if flag in notes else [])]
        lines.append(f"| `{flag}` | {said[0]} | {default.get(given, '')} | {'; '.join(remarks)} |")
    return "\n".join(lines) + "\n" + "".join(f"\n{line}\n" for line in _silent(guide))


def filled(page: str) -> str:
    """A page with every table made anew."""
    return PLACE.sub(lambda place: f"{place[1]}{table(place[2])}{place[3]}", page)


def defaults(model: str) -> dict[str, str]:
    """What conf/ sets for a model where nobody says otherwise, by key; without what is told from other keys."""
    conf, found = folder("conf"), dict[str, Any]()
    for group in ("parallel/single", "cache/none", "quant/none", "sampler/default"):
        section = group.partition("/")[0]
        found |= {f"{section}.{key}": value for key, value in leaves(_read(conf / f"{group}.yaml"))}
    for name in ("config", f"model/{model}"):
        found |= dict(leaves(_read(conf / f"{name}.yaml")))
    told = {key: spell(value) for key, value in found.items() if not isinstance(value, (list, tuple, Mapping))}
    told = {key: text for key, text in told.items() if not key.startswith("hydra.")}
    return {key: f"`{text}`" for key, text in told.items() if "${" not in text and 0 < len(text) <= LONGEST}


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return read


def _key(meaning: Any) -> str:
    return meaning if isinstance(meaning, str) else str(meaning.get("key", ""))


def _meaning(meaning: Any) -> tuple[str, list[str]]:
    """The key's cell, and what the note says of it."""
    if isinstance(meaning, str):
        return f"`{meaning}`", []
    if "none" in meaning:
        return "none", [meaning["none"]]
    if "switch" in meaning:
        absent = _settings(meaning.get("absent", {}))
        return _settings(meaning["switch"]) or "the next flag's", [f"absent: {absent}"] if absent else []
    if "values" in meaning:
        choices = meaning["values"].items()
        told = [f"`{old}`: {new.get('remark') or _settings(new)}" for old, new in choices]
        return ", ".join(dict.fromkeys(f"`{key}`" for _, new in choices for key in new if key != "remark")), told
    return f"`{meaning['key']}`", [f"sets {_settings(meaning['with'])}, too"] if "with" in meaning else []


def _settings(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={spell(value)}`" for key, value in keys.items())


def _silent(guide: Mapping[str, Any]) -> Iterator[str]:
    if sets := guide.get("sets"):
        yield f"Where a line is silent, import-flags takes {_settings(sets)}."
    for remark in guide.get("remarks", []):
        yield f"Otherwise than there: {remark}."


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(filled(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
