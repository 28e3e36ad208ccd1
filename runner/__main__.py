"""The front door: compose, check, plan, show, launch, report.

`python -m runner +recipe=osp12_w8a8` comes in here. Hydra composes the configuration from conf/ and recipes/ and hands
it over (in a sweep each combination); what a run needs is written into its folder; a worker process, which alone
imports torch, follows the plan there. Where all is stored, none is started: the desk links it.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from runner.store.status import DONE, FAILED, INTERRUPTED, REFUSED

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.desk.run.job import Member

# `runner NAME ...`: the module whose main(arguments) does it and returns the exit status.
COMMANDS = {
    "import-flags": "runner.desk.commands.import_flags",
    "prune": "runner.desk.commands.prune",
    "report": "runner.desk.report.command",
    "rerun": "runner.desk.commands.rerun",
    "schema": "runner.desk.commands.offers",
}
FULL_ERROR = "HYDRA_FULL_ERROR"


class Uncomposed(Exception):
    """Hydra could not compose what was asked for, and why in this project's words."""


def main() -> None:
    """Entry point of the console script `runner` and of `python -m runner`."""
    gc.set_threshold(50_000)  # collecting while a thousand classes are made is a tenth of what a plan takes
    try:
        status = door(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read this has enough: `runner --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = DONE
    sys.exit(status)


def door(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit status."""
    from runner.config.faults import Refused
    from runner.desk.show import terminal

    if not arguments:
        print(terminal.recipe_list())
        return DONE
    try:
        if arguments[0] in COMMANDS:
            command: Callable[[Sequence[str]], int] = import_module(COMMANDS[arguments[0]]).main
            return command(arguments[1:])
        if {"-h", "--help"} & set(arguments):
            print(terminal.help_text())
            return DONE
        if _asks_for_completions(arguments):
            from runner.desk.commands import offers

            if offers.complete(list(COMMANDS)):
                return DONE
        return _compose(arguments)
    except (Refused, Uncomposed) as reason:
        print(f"refused: {reason}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _asks_for_completions(arguments: Sequence[str]) -> bool:
    shell = bool({"-sc", "--shell-completion"} & set(arguments))
    return shell and any(argument.startswith("query=") for argument in arguments)


def _compose(arguments: Sequence[str]) -> int:
    """Have Hydra compose what the arguments ask for, then run or sweep it; the exit status."""
    members = compose(arguments)
    if not members:  # --cfg, --info and the like
        return DONE
    if not members[0].swept:
        return _run(members[0])
    from runner.desk.run import sweep

    def elsewhere(root: Path) -> None:
        _hydra(sweep.run_elsewhere, [*arguments, f"hydra.sweep.dir='{root}'"])

    return sweep.run(members, arguments, elsewhere if _launcher(arguments) else None)


def compose(arguments: Sequence[str]) -> list[Member]:
    """What the arguments ask for: one combination, all of a sweep, or none where Hydra itself has answered.

    Raises Refused where an argument does not parse, and Uncomposed where Hydra refuses.
    """
    from runner.config import overrides, recipes
    from runner.config.faults import Refused
    from runner.desk.run.job import member

    if faults := overrides.unparsed(arguments):
        raise Refused(faults)
    members: list[Member] = []
    own_mode = recipes.register(arguments)
    launcher = _launcher(arguments)
    if launcher:
        _hydra_has(launcher)
    # Hydra's own launcher composes all jobs of a sweep: they are checked before the one that is asked for gets any.
    plain = not own_mode and not any(re.match(r"-|[+~]*hydra\b", argument) for argument in arguments)
    composing = [a for a in arguments if a not in launcher]
    _hydra(lambda composed: members.append(member(composed)), composing, plain)
    return members


def _launcher(arguments: Sequence[str]) -> list[str]:
    """The arguments of a sweep that name a launcher of Hydra's."""
    swept = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments)
    return [a for a in arguments if swept and re.match(r"\+?hydra([/.])launcher\b", a)]


def _hydra_has(launcher: Sequence[str]) -> None:
    """Raises Uncomposed where Hydra has no such launcher."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from runner.config import recipes

    try:
        with initialize_config_dir(str(recipes.folder("conf")), version_base="1.3"):
            compose("config", list(launcher), return_hydra_config=True)
    except HydraException as error:
        raise Uncomposed(_in_our_words(error)) from error


def _hydra(task: Callable[[DictConfig], None], arguments: Sequence[str], plain: bool = False) -> None:
    """Have Hydra compose the arguments and call `task` with it, in a sweep with each combination. Raises Uncomposed
    where it refuses; with HYDRA_FULL_ERROR=1 what it raised itself.

    `plain`: neither flags nor keys of Hydra's ask for anything but one run. Its application composes such a run twice,
    the first time only to see that.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config import recipes

    conf = str(recipes.folder("conf"))
    shown_in_full = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # Hydra then raises its faults, where it would print them and end with 1
    typed, sys.argv[1:] = sys.argv[1:], _open(arguments)
    try:
        if plain:
            with hydra.initialize_config_dir(conf, version_base="1.3"):
                GlobalHydra.instance().hydra.run("config", task, _open(arguments))  # type: ignore[union-attr]
        else:
            hydra.main(version_base="1.3", config_path=conf, config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, OSError) as error:
        if shown_in_full:
            raise
        if isinstance(error, OSError) and not isinstance(error, HydraException):
            raise Uncomposed(f"output: {error.filename} cannot be made: {error.strerror}") from error
        raise Uncomposed(_in_our_words(error)) from error
    finally:
        sys.argv[1:] = typed
        if not shown_in_full:
            os.environ.pop(FULL_ERROR, None)


def _open(arguments: Sequence[str]) -> list[str]:
    """`key=value` as `++key=value`: the schema then judges unknown keys, all at once and with the nearest right name,
    where Hydra would stop at the first."""
    from runner.config.recipes import groups

    if {"-sc", "--shell-completion"} & set(arguments):
        return list(arguments)  # what follows is no key
    closed = {*groups(), "recipe"}

    def opened(argument: str) -> str:
        key = re.match(r"([A-Za-z_]\w*)(\.\w+)*=", argument)
        stays = key is None or key[1] == "hydra" or (key[1] in closed and not key[2])
        return argument if stays else f"++{argument}"

    return [opened(argument) for argument in arguments]


def _in_our_words(error: Exception) -> object:
    """What Hydra refuses: as a fault where a group's member is unknown or an override does not parse, else in its
    words."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config import overrides
    from runner.config.faults import Fault, nearest

    if isinstance(error, OverrideParseException):  # a word without =, or what a recipe sweeps over
        return overrides.fault_of(str(error.override).removeprefix("++"), str(error.message).splitlines()[0])
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, member = error.missing_cfg_file.rpartition("/")
        hint = "; more come with pip install 'dit-runner[launch]'" if group == "hydra/launcher" else ""
        expected = f"expected {', '.join(error.options)}{hint}"
        return Fault(group, expected, member, nearest(member, error.options))
    words = str(error).replace("'++", "'")
    if isinstance(error.__cause__, OmegaConfBaseException):
        words += f"\n{error.__cause__}"
    return words


def _run(one: Member) -> int:
    """Run one composed configuration; the exit status."""
    from runner.desk.run.job import discard_if_empty, follow, prepare
    from runner.desk.run.launch import RunFailed

    try:
        follow(prepare(one.composed, one.overrides), one.folder)
        return DONE
    except RunFailed as failed:
        print(failed, file=sys.stderr)
        return FAILED
    finally:
        discard_if_empty(one.folder)


if __name__ == "__main__":
    main()
