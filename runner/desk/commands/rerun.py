"""`runner rerun FOLDER [--output OUTPUT] [key=PLACE ...]`: make a run again elsewhere; are its results the same bytes?

The configuration is the one in FOLDER/run.json, so a recipe that has changed since changes nothing here. OUTPUT has a
store of its own, so nothing of the first run is reused; a rerun that was cut off goes on where it stopped. Exit status:
0 where all results are equal byte by byte, 1 where they are not or the run failed, 2 where it was refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config.faults import Fault, Refused, nearest_key
from runner.config.precedence import NAMING, Explicit, leaves
from runner.desk import report
from runner.desk.check.config import Checked, check
from runner.desk.check.rules import PATHS
from runner.desk.plan import earlier
from runner.desk.run import provenance
from runner.desk.run.job import claim, follow, plan, try_page
from runner.desk.run.launch import RunFailed
from runner.model.checkpoints import EMBEDDED, PARTS
from runner.store.durable import write_json
from runner.store.fingerprints import sha256

RERUN = "rerun.json"  # in the new run's folder: of which run, and what came out
# What says nothing of results, and is not done a second time: files delivered into folders of the user's own.
NOT_AGAIN = (
    "show",
    "launch",
    "redo",
    "cache.save_path",
    "dump.folder",
    "quant.folder",
    "sample.folder",
    "sampler.save_dir",
)
PLACES = tuple(
    sorted(
        {*PATHS, "model.checkpoint", *(f"model.{part}" for part in PARTS)} - {"output", "model.cache_dir", *NOT_AGAIN}
    )
)
LONGEST = 12  # lines of differences on the terminal; all of them are in rerun.json

Json = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What came out of making a run again. Files by their path in the run folder, as <stage>/<path>."""

    of: str
    equal: bool
    same: int  # files that are equal byte by byte
    reused: Sequence[str]  # stages that were stored in OUTPUT: an earlier rerun made them
    differ: Sequence[str]
    missing: Sequence[str]  # only the first run has them
    added: Sequence[str]  # only the second run has them
    why: Sequence[str]  # what differs in what the two were made of


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status. Raises Refused where FOLDER is no run, or cannot run here."""
    parser = argparse.ArgumentParser(
        prog="runner rerun",
        description="Make a run again elsewhere, and say whether its results are the same, byte by byte; if they are "
        "not, what differs in what they were made of. Exit status: 0 equal, 1 not equal, 2 refused.",
        epilog=f"Where things lie elsewhere now, say so by key=PLACE: {', '.join(PLACES)}.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the run folder; a copy of it will do")
    parser.add_argument("places", nargs="*", metavar="key=PLACE", help="where weights and files lie here")
    parser.add_argument(
        "--output", default="reruns", type=Path, help="output folder with a store of its own (default: reruns)"
    )
    asked = parser.parse_args(arguments)
    first: Path = asked.folder.resolve()
    told, planned = _read(first, "run.json"), _read(first, "plan.json")
    if (store := (asked.output / ".store").resolve()) == Path(str(planned.get("store"))):
        expected = f"expected another folder: the artifacts of {first} are in {store}, and would be reused"
        raise Refused([Fault("--output", expected, str(asked.output))])
    checked, newer = _as_told(told, dict(_place(word) for word in asked.places), asked.output)
    if newer:
        print(f"newer than the run, so at their defaults: {', '.join(newer)}", file=sys.stderr)
    job = plan(checked, ["rerun", *arguments])
    run = claim(Path(checked.config["output"]) / checked.config["name"] / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    try:
        follow(job, run, claimed=True)
    except RunFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    found = compare(first, run)
    write_json(run / RERUN, asdict(found))
    try_page(report.write, run)
    print("\n".join(said(found)))
    return 0 if found.equal else 1


def compare(first: Path, second: Path) -> Verdict:
    """Two run folders: which results are equal byte by byte, and what differs in what they were made of."""
    rows = [_read(folder, "plan.json")["stages"] for folder in (first, second)]
    before, after = (_results(folder, stages) for folder, stages in zip((first, second), rows, strict=True))
    both = sorted(before.keys() & after.keys())
    differ = [name for name in both if not _equal(before[name], after[name])]
    missing, added = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    return Verdict(
        of=str(first),
        equal=bool(both) and not (differ or missing or added),
        same=len(both) - len(differ),
        reused=[row["stage"] for row in rows[1] if row["action"] == "reuse"],
        differ=differ,
        missing=missing,
        added=added,
        why=[*_inputs(*rows), *provenance.differences(*(_read(f, "provenance.json") for f in (first, second)))],
    )


def said(found: Verdict) -> Iterator[str]:
    """The verdict in a few lines."""
    if found.reused:
        yield f"reused   {', '.join(found.reused)}: an earlier rerun in this output folder made them"
    if not found.same and not found.differ:
        yield f"results  nothing to compare: no result is in both {found.of} and the rerun"
    elif found.equal:
        yield f"results  equal: all {found.same} files, byte by byte, of {found.of}"
    else:
        count = found.same + len(found.differ) + len(found.missing) + len(found.added)
        yield f"results  not equal: {count - found.same} of {count} files, of {found.of}"
    files = [*found.differ, *(f"{name} (only the first)" for name in found.missing)]
    yield from _listed([*files, *(f"{name} (only the second)" for name in found.added)])
    if found.why:
        yield "made of  what differs between the two:"
        yield from _listed(found.why)
    elif not found.equal:
        yield "made of  the same, as far as provenance.json tells"


def _listed(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"         {line}" for line in lines[:LONGEST])
    if len(lines) > LONGEST:
        yield f"         and {len(lines) - LONGEST} more: {RERUN} lists all"


def _as_told(told: Mapping[str, Any], places: Mapping[str, str], output: Path) -> tuple[Checked, list[str]]:
    """The configuration of run.json, checked for this machine, and the keys that are newer than it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from runner.config import recipes

    config, origin = told["config"], dict(told["origin"])
    members = recipes.groups()
    chosen = ((group, dict(leaves(config)).get(key)) for group, key in NAMING.items())
    with initialize_config_dir(str(recipes.folder("conf")), version_base="1.3"):
        composed = compose("config", [f"{group}={name}" for group, name in chosen if name in members[group]])
    defaults: Json = OmegaConf.to_container(composed)  # type: ignore[assignment]
    newer = sorted(dict(leaves(defaults)).keys() - dict(leaves(config)).keys() - {"hardware.env"})
    again = {
        name: {**defaults.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in {**defaults, **config}.items()
    }
    if "compute" not in config["hardware"]:  # before there was this key, a run computed in what its weights are
        again["hardware"]["compute"] = config["model"]["dtype"]
    if told["checkpoint"].get("embedded"):  # wherever this installation has them
        places = {"model.checkpoint": EMBEDDED, **places}
    if "model.checkpoint" in places:  # what was found beside the weights is looked for beside them again
        found = (f"model.{part}" for part in PARTS if origin.get(f"model.{part}") == "default")
        places = {**dict.fromkeys(found), **places}  # type: ignore[dict-item]
    for key, value in {**dict.fromkeys(NOT_AGAIN), **places, "output": str(output)}.items():
        section, _, name = key.rpartition(".")
        (again[section] if section else again)[name] = value
    origin |= dict.fromkeys([*places, "output"], "command line")
    by = {key: who for key, who in origin.items() if who in ("command line", "recipe") and key not in NOT_AGAIN}
    return check(OmegaConf.create(again), Explicit(by, settled=origin)), newer


def _place(word: str) -> tuple[str, str]:
    key, given, place = word.partition("=")
    if not given or key not in PLACES:
        expected = f"a rerun changes places only: expected key=PLACE with a key of {', '.join(PLACES)}"
        raise Refused([Fault(key, expected, meant=nearest_key(key, PLACES))])
    return key, place


def _read(folder: Path, name: str) -> Json:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused([Fault("rerun", f"expected a run folder with a whole {name} ({error})", str(folder))]) from error
    return content if isinstance(content, dict) else {}


def _results(run: Path, stages: Sequence[Json]) -> dict[str, Path]:
    """The files that are results, by stage and path: what was measured beside them lies in another folder."""
    made = [run / row["stage"] for row in stages if row["action"] != "skip"]
    files = (file for folder in made if folder.is_dir() for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(run).as_posix(): file for file in files}


def _equal(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other)


def _inputs(before: Sequence[Json], after: Sequence[Json]) -> Iterator[str]:
    """What makes the keys of the stages differ, each said once; that a stage builds on such a one is no news."""
    then = {row["stage"]: row for row in before}
    told = set()
    for row in after:
        old = then.get(row["stage"], {"action": "skip"})
        if (old["action"] == "skip") != (row["action"] == "skip"):
            yield f"{row['stage']} {'only in the second' if old['action'] == 'skip' else 'only in the first'}"
        elif row["action"] != "skip":
            for line in earlier.differences(old["lineage"], row["lineage"]):
                if line not in told and not line.startswith("builds on"):
                    told.add(line)
                    yield line
