"""Every room of runner/model answers the same questions, by the same names and arguments."""

import inspect
import re
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

import runner.model
from runner.model import rules_of
from runner.model.rules import Room, Rules

RUNNER = Path(runner.model.__file__).parents[1]
ROOMS = sorted(path.parent.name for path in (RUNNER / "model").glob("*/rules.py"))
FUNCTIONS = {
    protocol: [name for name, member in vars(protocol).items() if inspect.isfunction(member) and name[0] != "_"]
    for protocol in (Rules, Room)
}


def test_there_are_rooms() -> None:
    assert {"diffusers", "opensora12", "osp12", "sd3"} <= set(ROOMS)
    assert len(FUNCTIONS[Rules]) == 12 and len(FUNCTIONS[Room]) == 4


@pytest.mark.parametrize("name", ROOMS)
def test_rules_have_the_protocol_s_constants(name: str) -> None:
    rules = rules_of({"name": name})
    for constant, kind in get_type_hints(Rules).items():
        value = getattr(rules, constant)
        if get_origin(kind) is tuple:
            allowed = get_args(get_args(kind)[0]) or get_args(kind)[:1]
            assert isinstance(value, tuple) and all(isinstance(entry, allowed) for entry in value), constant
        else:
            assert type(value) is kind, constant


@pytest.mark.parametrize("function", FUNCTIONS[Rules])
@pytest.mark.parametrize("name", ROOMS)
def test_rules_have_the_protocol_s_functions(name: str, function: str) -> None:
    expected = inspect.signature(getattr(Rules, function))
    wanted = expected.replace(parameters=list(expected.parameters.values())[1:])  # without self
    assert (
        inspect.signature(getattr(rules_of({"name": name}), function)) == wanted
    )  # with the types, as they are written


@pytest.mark.parametrize("function", FUNCTIONS[Room])
@pytest.mark.parametrize("name", ROOMS)
def test_rooms_load_alike(name: str, function: str) -> None:
    """The same arguments in the same order; what a room takes beyond has a default."""
    wanted = list(inspect.signature(getattr(Room, function)).parameters.values())[1:]
    room = runner.model._room({"name": name})
    taken = list(inspect.signature(getattr(room, function)).parameters.values())
    assert [(p.name, p.default, p.kind) for p in taken[: len(wanted)]] == [(p.name, p.default, p.kind) for p in wanted]
    assert all(p.default is not inspect.Parameter.empty for p in taken[len(wanted) :])
    assert function in room.__all__


def test_nobody_asks_whether_rules_have_something() -> None:
    asking = re.compile(r"(hasattr|getattr)\((rules|rules_of\()")
    assert not [path for path in RUNNER.rglob("*.py") if asking.search(path.read_text(encoding="utf-8"))]
