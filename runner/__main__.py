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

    from runner.desk.sweep import Member

# `runner NAME ...`: the module whose main(arguments) does it and returns the exit status.
COMMANDS = {
    "import-flags": "runner.desk.import_flags",
    "prune": "runner.desk.prune",
    "report": "runner.desk.report.command",
    "schema": "runner.desk.offers",
}
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130  # exit statuses


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
        if _asks_for_completions(arguments):
            from runner.desk import offers

            if offers.complete(list(COMMANDS)):
                return DONE
        return _compose(arguments)
    except Refused as refused:
        return _refuse(refused)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _asks_for_completions(arguments: Sequence[str]) -> bool:
    shell = bool({"-sc", "--shell-completion"} & set(arguments))
    return shell and any(argument.startswith("query=") for argument in arguments)


def _compose(arguments: Sequence[str]) -> int:
    """Have Hydra compose what the arguments ask for, and run, sweep or print it; the exit status."""
    from runner.desk import recipes

    statuses: list[int] = []
    members: list[Member] = []

    entered: list[DictConfig] = []

    def job(composed: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        entered.append(composed)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            from runner.desk import sweep

            members.append(sweep.member(composed))
        else:
            statuses.append(_job(composed))

    recipes.register(arguments)
    launcher = [argument for argument in arguments if re.match(r"\+?hydra([/.])launcher\b", argument)]
    swept = bool({"-m", "--multirun"} & set(arguments))
    if not swept:
        launcher = []
    elif launcher and (refused := _hydra_has(launcher)) is not None:
        return refused
    # Hydra's own launcher is asked first, to compose all jobs of a sweep: they are checked before any starts.
    refused = _hydra(job, [argument for argument in arguments if argument not in launcher], entered)
    if refused is not None:
        return refused
    if not members:
        return max(statuses, default=DONE)
    from runner.desk import sweep

    def elsewhere(root: Path) -> None:
        _hydra(sweep.run_elsewhere, [*arguments, f"hydra.sweep.dir='{root}'"], entered)

    return sweep.run(members, arguments, elsewhere if launcher else None)


def _hydra_has(launcher: Sequence[str]) -> int | None:
    """The exit status where Hydra has no such launcher, else None."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from runner.desk import recipes

    try:
        with initialize_config_dir(str(recipes.folder("conf")), version_base="1.3"):
            compose("config", list(launcher), return_hydra_config=True)
    except HydraException as error:
        return _refuse(_in_our_words(error))
    return None


def _hydra(task: Callable[[DictConfig], None], arguments: Sequence[str], entered: Sequence[object] = ()) -> int | None:
    """Have Hydra compose the arguments and call `task` with it, in a sweep with each combination; the exit status where
    Hydra refuses, else None. An error of the system is the output folder's as long as nothing has `entered`."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.desk import recipes

    shown_in_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its faults, where it would print them and end with 1
    typed, sys.argv[1:] = sys.argv[1:], _open(arguments)
    try:
        hydra.main(version_base="1.3", config_path=str(recipes.folder("conf")), config_name="config")(task)()
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
    return None


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
        hint = "; more come with pip install 'dit-runner[launch]'" if group == "hydra/launcher" else ""
        expected = f"expected {', '.join(error.options)}{hint}"
        return Fault(group, expected, member, nearest(member, error.options))
    words = str(error).replace("'++", "'")
    if isinstance(error.__cause__, OmegaConfBaseException):
        words += f"\n{error.__cause__}"
    if isinstance(error, OverrideParseException):
        words += "\nA text with commas, brackets or colons needs quotes of its own: 'prompts.text=\"a cat, asleep\"'"
    return words


def _job(composed: DictConfig) -> int:
    """Run one composed configuration, as Hydra hands it over; the exit status."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from runner.desk.faults import Refused
    from runner.desk.job import discard_if_empty, follow, prepare
    from runner.desk.launch import RunFailed

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    overrides = [str(typed) for typed in OmegaConf.to_container(hydra.overrides.task, resolve=False) or ()]
    try:
        follow(prepare(composed, overrides), folder)
        return DONE
    except Refused as refused:
        return _refuse(refused)
    except RunFailed as failed:
        print(failed, file=sys.stderr)
        return FAILED
    finally:
        discard_if_empty(folder)


def _refuse(reason: object) -> int:
    print(f"refused: {reason}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    main()
