"""Why a stage runs: what differs from the nearest earlier run, by the lineage that each run leaves in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.config.faults import spell

MOST_RECENT = 256  # lineages of a stage that are looked through: a plan must not slow down with the years
SHOWN = 2  # differences that are named; of more their number is
LONGEST = 24  # characters of a value that are shown


def why(lineage: Mapping[str, Any], key: str, folder: Path) -> str | None:
    """What changed from the earlier run whose lineage in `folder` is nearest to this one; None if there is none."""
    stage = str(lineage["stage"])
    if (folder / f"{stage}-{key}.json").is_file():
        return "begun before and not finished, or pruned since"
    found = [list(differences(earlier, lineage)) for earlier in _lineages(folder, stage)]
    if not found:
        return None
    changed = min(found, key=len)  # of equally near ones the most recent, which comes first
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return ", ".join(changed[:SHOWN]) + more if changed else None


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What makes two lineages of one stage differ, each in a few words."""
    before, after = earlier.get("fields", {}), now["fields"]
    for key in (*after, *(key for key in before if key not in after)):
        if key not in before:
            yield f"{key} is new"
        elif key not in after:
            yield f"{key} counts no more"
        elif before[key] != after[key]:
            yield f"{key} {_short(before[key])} → {_short(after[key])}"
    before, after = earlier.get("prompts", {}), now["prompts"]
    for role in sorted({*before, *after}):
        if before.get(role) != after.get(role):
            counts = [len(prompts.get(role) or ()) for prompts in (before, after)]
            yield f"prompts.{role} changed" if counts[0] == counts[1] else f"prompts.{role} {counts[0]} → {counts[1]}"
    before, after = earlier.get("weights", {}), now["weights"]
    for part in sorted({name.partition("/")[0] for name in {*before, *after} if before.get(name) != after.get(name)}):
        yield f"weights of {part} changed"
    if earlier.get("torch") != now["torch"]:
        yield f"torch {earlier.get('torch')} → {now['torch']}"
    if earlier.get("version") != now["version"]:
        yield f"the stage's version {earlier.get('version')} → {now['version']}"
    if earlier.get("machine") != now.get("machine"):
        yield "measured on another machine"
    before, after = earlier.get("builds_on", {}), now["builds_on"]
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield f"builds on another {name}" if name in before and name in after else f"builds on {name} or did"


def _lineages(folder: Path, stage: str) -> Iterator[dict[str, Any]]:
    """The lineages of a stage, the most recent first; unreadable ones are left out."""
    digits = "[0-9a-f]" * 16  # the key: `search-*` alone would also be search-cache-...
    files = [(file.stat().st_mtime_ns, file) for file in folder.glob(f"{stage}-{digits}.json")]
    for _, file in sorted(files, reverse=True)[:MOST_RECENT]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            yield content


def _short(value: Any) -> str:
    text = spell(value) if value != "" else "''"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
