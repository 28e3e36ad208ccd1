"""The front door: compose, check, plan, show, launch, report.

`python -m runner +recipe=osp12_w8a8` comes in here. Hydra composes the configuration from conf/ and recipes/ and hands
it to `_job` (once for each combination in a sweep); what a run needs is written into its folder; a worker process,
which alone imports torch, follows the plan there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

# `runner NAME ...`: the module whose main(arguments) does it and returns the exit status.
COMMANDS = {
    "import-flags": "runner.desk.import_flags",
    "prune": "runner.desk.prune",
    "report": "runner.desk.report.command",
}
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130  # exit statuses


class JobEnded(Exception):
    """A job of a sweep that did not finish and has said why: Hydra goes on with the others."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def main() -> None:
    """Entry point of the console script `runner` and of `python -m runner`."""
    sys.exit(door(sys.argv[1:]))


def door(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit status."""
    from runner.desk import show
    from runner.desk.faults import Refused

    if not arguments:
        print(show.recipe_list())
        return DONE
    try:
        if arguments[0] in COMMANDS:
            command: Callable[[Sequence[str]], int] = import_module(COMMANDS[arguments[0]]).main
            return command(arguments[1:])
        if {"-h", "--help"} & set(arguments):
            print(show.help_text())
            return DONE
        return _compose(arguments)
    except JobEnded as ended:
        return ended.status
    except Refused as refused:
        return _refuse(refused)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _compose(arguments: Sequence[str]) -> int:
    """Have Hydra compose what the arguments ask for, and run, sweep or print it; the exit status."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.desk import recipes

    statuses: list[int] = []
    entered: list[DictConfig] = []

    def job(composed: DictConfig) -> None:
        entered.append(composed)
        statuses.append(_job(composed))

    recipes.register(arguments)
    shown_in_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its faults, where it would print them and end with 1
    typed, sys.argv[1:] = sys.argv[1:], _open(arguments)
    try:
        hydra.main(version_base="1.3", config_path=str(recipes.folder("conf")), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if shown_in_full:
            raise
        return _refuse(_in_our_words(error))
    except OSError as error:
        if entered or shown_in_full:
            raise
        return _refuse(f"output: {error.filename} cannot be made: {error.strerror}")
    finally:
        sys.argv[1:] = typed
        if not shown_in_full:
            del os.environ["HYDRA_FULL_ERROR"]
    return max(statuses, default=DONE)


def _open(arguments: Sequence[str]) -> list[str]:
    """`key=value` as `++key=value`: the schema then judges unknown keys, all at once and with the nearest right name,
    where Hydra would stop at the first."""
    from runner.desk.recipes import groups

    if {"-sc", "--shell-completion"} & set(arguments):
        return list(arguments)  # what follows is no key
    closed = {*groups(), "recipe"}

    def opened(argument: str) -> str:
        key = re.match(r"([A-Za-z_]\w*)(\.\w+)*=", argument)
        stays = key is None or key[1] == "hydra" or (key[1] in closed and not key[2])
        return argument if stays else f"++{argument}"

    return [opened(argument) for argument in arguments]


def _in_our_words(error: Exception) -> object:
    """What Hydra refuses: as a fault where a group's member is unknown, else in its words, with a hint about quotes."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    from runner.desk.faults import Fault, nearest

    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, member = error.missing_cfg_file.rpartition("/")
        return Fault(group, f"expected {', '.join(error.options)}", member, nearest(member, error.options))
    words = str(error).replace("'++", "'")
    if isinstance(error.__cause__, OmegaConfBaseException):
        words += f"\n{error.__cause__}"
    if isinstance(error, OverrideParseException):
        words += "\nA text with commas, brackets or colons needs quotes of its own: 'prompts.text=\"a cat, asleep\"'"
    return words


def _job(composed: DictConfig) -> int:
    """Run one composed configuration, as Hydra hands it over; the exit status. In a sweep, JobEnded if it is not 0."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from runner.desk.faults import Refused
    from runner.desk.job import discard_if_empty
    from runner.desk.launch import RunFailed

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    overrides = [str(typed) for typed in OmegaConf.to_container(hydra.overrides.task, resolve=False) or ()]
    try:
        _run(composed, overrides, folder)
        return DONE
    except Refused as refused:
        status = _refuse(refused)
    except RunFailed as failed:
        print(failed, file=sys.stderr)
        status = FAILED
    finally:
        discard_if_empty(folder)
    if hydra.mode == RunMode.MULTIRUN:
        raise JobEnded(status)
    return status


def _run(composed: DictConfig, overrides: list[str], folder: Path) -> None:
    """Check, plan, show, launch, report. Raises Refused or RunFailed."""
    from runner.desk import launch, show
    from runner.desk.job import claim, prepare

    job = prepare(composed, overrides)
    if job.config["show"] == "plan":
        show.show_plan(job.planned, job.checked.checkpoint, None)
        return

    run = claim(folder)
    show.show_plan(job.planned, job.checked.checkpoint, run)
    job.write(run)
    try:
        launch.launch(run, job.config)
    finally:  # the page of a run that failed is the one that somebody needs most
        from runner.desk import report

        print(f"page     {report.write(run)}")


def _refuse(reason: object) -> int:
    print(f"refused: {reason}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    main()
