"""What the desk says on the terminal: the list of recipes, the help, the plan."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config import recipes
from runner.config.faults import spell
from runner.config.wording import plain, seconds, size

if TYPE_CHECKING:
    from rich.console import Console

    from runner.desk.check.config import Checked
    from runner.desk.plan.graph import PlannedStage
    from runner.desk.run.probe import Probe  # points up: a type alone

USAGE = "usage: python -m runner [+recipe=NAME] [group=MEMBER ...] [key=value ...] [-m] [--cfg job]"

HELP = """\
{usage}

Runs the stages dump, calibrate, quantize, search and sample, those that the configuration asks for, reuses what is
stored already, and writes one folder with videos, weights, measurements and a page.

examples
  python -m runner +recipe=osp12_w8a8                                the main job, on weights that ship with the project
  python -m runner +recipe=osp12_w8a8 model.checkpoint=FOLDER        the same on a released checkpoint
  python -m runner +recipe=osp12_w8a8 show=plan                      what would run, and what is reused
  python -m runner +recipe=osp12_w8a8 show=estimate                  and how long that takes
  python -m runner +recipe=osp12_w8a8 'prompts.text="a cat, asleep"' quotes inside quotes, for commas and brackets
  python -m runner -m +recipe=osp12_w8a8 quant.observer=minmax,mse   one run for each value
  python -m runner +recipe=osp12_w8a8 --cfg job                      the composed configuration; runs nothing
  python -m runner report FOLDER...                                  the page of a run or a sweep; --csv, --json
  python -m runner rerun FOLDER                                      that run again, and whether its bytes are the same
  python -m runner import-flags --name mine "torchrun ..."           an old launch line as ./recipes/mine.yaml
  python -m runner prune outputs                                     what no run uses any more; --yes deletes it
  python -m runner schema > runner.schema.json                       what an editor checks recipes by
  eval "$(runner -sc install=bash)"                                  completion with the Tab key, also zsh and fish

A value comes from the command line, else the recipe, else the checkpoint's defaults.yaml, else the group's default.
Exit status: 0 done, 1 a run failed, 2 a configuration was refused, 130 interrupted.

recipes (+recipe=NAME; shipped ones and those of ./recipes)
{recipes}

groups (group=MEMBER)
{groups}

keys (key=value), with their defaults
{keys}
"""


def recipe_list() -> str:
    """What `python -m runner` says by itself: each recipe with a line."""
    return "\n".join(
        [USAGE, "", "recipes:", _recipes(), "", "`python -m runner --help` lists groups, keys and examples."]
    )


def _recipes() -> str:
    found = recipes.recipes()
    width = max(map(len, found), default=0)
    return "\n".join(f"  {recipe.name:<{width}}  {recipe.purpose}" for recipe in found.values())


def help_text() -> str:
    """All that can be said on the command line, with what each key means and its default."""
    from runner.config.precedence import defaults
    from runner.config.schema import keys

    width = min(shutil.get_terminal_size((120, 40)).columns, 120)
    values = defaults()
    groups = recipes.groups()
    name_width = max(map(len, groups))
    key_lines = []
    for key, meaning in keys().items():
        shown = " ".join(f"{key}={spell(values.get(key))}".split())
        shown = shown if len(shown) <= 44 else f"{shown[:41]}..."
        wrapped = textwrap.wrap(meaning, max(width - 48, 30)) or [""]
        key_lines += [f"  {shown:<44}  {wrapped[0]}", *(f"  {'':<44}  {line}" for line in wrapped[1:])]
    return HELP.format(
        usage=USAGE,
        recipes=_recipes(),
        groups="\n".join(f"  {group:<{name_width}}  {' '.join(members)}" for group, members in groups.items()),
        keys="\n".join(key_lines),
    )


def terminal() -> Console:
    """Where tables go: as wide as the terminal, and 120 columns where there is none."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console


def _compute(checked: Checked) -> str:
    """What is computed in and why, in a few words."""
    layerwise = checked.config["hardware"]["layerwise_casting"]
    by = "" if checked.origin["hardware.layerwise_casting"] != "machine" else ", which this machine's memory asks for"
    casting = f"; weights stay {checked.config['model']['dtype']} and are cast layer by layer{by}" if layerwise else ""
    return f"{checked.compute.dtype}: {checked.compute.why}{casting}"


def show_plan(planned: Sequence[PlannedStage], checked: Checked, run: Path | None, probe: Probe | None = None) -> None:
    """Print which weights are used, what is computed in, where the run goes (None: nowhere, it is only shown), and the
    stages; by a `probe`, how long each takes."""
    from rich import box
    from rich.table import Table

    console = terminal()
    console.print(f"weights  {checked.checkpoint.label}", soft_wrap=True, markup=False)
    console.print(f"compute  {_compute(checked)}", soft_wrap=True, markup=False)
    if run is not None:
        console.print(f"run      {run}", soft_wrap=True, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "action", "why", "writes"):
        table.add_column(name, overflow="fold")
    for name in ("forwards", "disk", "memory", *(("time",) if probe else ())):
        table.add_column(name, justify="right")
    times = probe.seconds(planned) if probe else {}
    styles = {"run": "", "reuse": "green", "skip": "dim"}
    for row in planned:
        if not row.writes:
            continue  # it has no part in this run
        action = "—" if row.action == "skip" else row.action
        bound = "≤ " if row.at_most else ""
        forwards = f"{bound}{row.forwards:,}" if row.action == "run" and row.forwards else ""
        figures = [forwards, *(size(need) if need and row.action == "run" else "" for need in (row.disk, row.memory))]
        if probe:
            figures.append(bound + seconds(times[row.stage]) if row.stage in times else "")
        table.add_row(row.stage, action, row.reason, row.writes, *map(plain, figures), style=styles[row.action])
    console.print(table)
    if probe:
        console.print(plain(f"time     about {seconds(sum(times.values()))}, by a probe of {probe}"), soft_wrap=True)
