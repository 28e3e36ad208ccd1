"""Read a run folder for its page. What is missing or broken in it is one of the run's gaps, and is never raised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import technique
from runner.page.files import png_size, tree
from runner.page.run import Clip, Run, Stage
from runner.page.values import Reader, items, mapping, number, pick, rows

PICTURES = (".mp4", ".png")


def read_run(folder: Path) -> Run:
    """The run of a folder. Raises FileNotFoundError only where there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run folder")
    reader = Reader(folder)
    run = reader.mapping("run.json", expected=True)
    plan = reader.mapping("plan.json", expected=True)
    status = reader.mapping("status.json", expected=False)
    config = mapping(run.get("config"))
    done = status.get("state") == "done"
    stages = _stages(reader, plan, status)
    made = frozenset(stage.name for stage in stages if stage.state in ("done", "reused"))
    reference = next((name for name in REFERENCES if name in made), "dump")
    changed = arm(config)
    compared = changed is not None and pick(config, "sample", "compare") is not False
    metrics = reader.mapping("sample/metrics.json", expected="sample" in made and compared)
    sheet = folder / "sample" / "contact_sheet.png"
    return Run(
        folder=folder,
        name=str(run.get("name") or folder.name),
        created=str(run.get("created") or ""),
        command=[str(word) for word in items(run.get("command"))],
        config=config,
        origin=mapping(run.get("origin")),
        checkpoint=mapping(run.get("checkpoint")),
        state=str(status.get("state") or "waiting"),
        error=str(status["error"]) if status.get("error") else None,
        failed_stage=str(status["stage"]) if status.get("state") == "failed" and status.get("stage") else None,
        traceback=next((name for name in ("traceback.txt", "run.log") if (folder / name).is_file()), None),
        seconds=number(status, "seconds"),
        stages=stages,
        made=made,
        clips=_clips(reader, metrics, reference, changed is not None, done and "sample" in made),
        contact_sheet="sample/contact_sheet.png" if sheet.is_file() else None,
        contact_sheet_size=png_size(sheet),
        metrics=metrics,
        measured=reader.mapping("measurements/sample.json", expected="sample" in made),
        recorded=reader.mapping(f"measurements/{reference}.json", expected=False),
        files=tree(folder),
        provenance=reader.mapping("provenance.json", expected=True),
        rerun=reader.mapping("rerun.json", expected=False),
        reader=reader,
        arm=changed,
        changes=changes(config),
    )


# The dumps of a run, from the one that samples are compared with where it is there.
REFERENCES = ("dump-schedule", "dump")


def arm(config: Mapping[str, Any]) -> str | None:
    """What a run of this configuration changes: which steps it takes, how it quantizes, what it reuses."""
    return " + ".join(name for _, rows in technique.rows() if (name := rows.name(config))) or None


def changes(config: Mapping[str, Any]) -> str | None:
    """What of it changes a single call of the transformer, so that a step may be timed beside the float one."""
    each = (rows.name(config) for _, rows in technique.rows() if rows.changes_call)
    return " + ".join(filter(None, each)) or None


def _stages(reader: Reader, plan: Mapping[str, Any], status: Mapping[str, Any]) -> list[Stage]:
    """The plan's lines; a stage before the one that status.json names is over, one after it has not begun."""
    planned = rows(plan.get("stages"))
    names = [str(row.get("stage")) for row in planned]
    state, current = status.get("state"), status.get("stage")
    position = names.index(current) if current in names else (len(names) if state == "done" else 0)
    stages = []
    for place, (name, row) in enumerate(zip(names, planned, strict=True)):
        over = {"reuse": "reused", "skip": "skipped"}.get(str(row.get("action")), "done")
        if place < position or state == "done":
            became = over
        elif place == position and state in ("running", "failed"):
            became = str(state)
        else:
            became = "skipped" if over == "skipped" else "waiting"
        measured = reader.mapping(f"measurements/{name}.json", expected=False)
        stages.append(
            Stage(
                name=name,
                state=became,
                reason=str(row.get("reason") or ""),
                writes=str(row.get("writes") or ""),
                seconds=number(measured, "seconds"),
            )
        )
    return stages


def _clips(reader: Reader, metrics: Mapping[str, Any], dump: str, changed: bool, sampled: bool) -> list[Clip]:
    """One clip for each prompt that sample made, or will make: dump's reference beside it, told by prompt and seed."""
    references = {
        (row.get("prompt"), row.get("seed")): _picture(reader.folder, dump, row)
        for row in reader.rows(f"{dump}/prompts.json", expected=False)
        if "text" in (row.get("roles") or ["text"])
    }
    figures = {row.get("index"): row for row in rows(metrics.get("prompts"))}
    clips = []
    for place, row in enumerate(reader.rows("sample/prompts.json", expected=sampled)):
        prompt, seed = row.get("prompt"), row.get("seed")
        reference, made = references.get((prompt, seed)), _picture(reader.folder, "sample", row, place)
        if not changed:
            reference, made = made or reference, None
        clips.append(Clip(str(prompt), seed, reference, made, figures.get(row.get("index", place), {})))
    if not clips:
        clips = [Clip(str(prompt), seed, path, None, {}) for (prompt, seed), path in references.items()]
    return clips


def _picture(folder: Path, stage: str, row: Mapping[str, Any], place: int = 0) -> str | None:
    name = row.get("folder") or f"prompt-{row.get('index', place):03d}"
    paths = (f"{stage}/videos/{name}{suffix}" for suffix in PICTURES)
    return next((path for path in paths if (folder / path).is_file()), None)
