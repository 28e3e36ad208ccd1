"""Which overrides do not parse, where, and what to type in their place: Hydra's grammar, in this project's words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from runner.config.faults import Fault, nearest_key

# [+~]key[@package]: what stands before the first = of an override.
KEY = re.compile(r"(?:\+\+?|~)?[A-Za-z_$][\w$-]*(?:[./][\w$-]+)*(?:@[\w$.:-]*)?", re.ASCII)
BRACKETS = {"(": ")", "[": "]", "{": "}"}
FUNCTION = re.compile(r"\s*[A-Za-z_]\w*\s*", re.ASCII)  # what stands before the ( of one
UNQUOTED = re.compile(r"[\w \t/\-\\+.$%*@?|:,=()\[\]{}\"']", re.ASCII)  # what a value may have without quotes
QUOTES = "a text with {} needs quotes of its own: 'prompts.text=\"a cat, asleep\"'"


@dataclass(frozen=True)
class Wrong:
    """What is wrong with an override, at which of its characters, counted from 0; and what was perhaps meant."""

    at: int
    why: str
    meant: str | None = None


def unparsed(arguments: Sequence[str]) -> list[Fault]:
    """A fault for each of the arguments that is an override and does not parse. Flags and plain words are not judged:
    a word may be a flag's value."""
    judged = [argument for argument in arguments if not argument.startswith("-")]
    found = ((argument, _wrong(argument)) for argument in judged if "=" in argument or argument.startswith("~"))
    return [_fault(argument, wrong) for argument, wrong in found if wrong]


def fault_of(override: str, said: str) -> Fault:
    """The fault of one override that Hydra could not parse; `said` is why, in its words, for want of better ones."""
    return _fault(override, _wrong(override) or Wrong(0, said))


def _fault(override: str, wrong: Wrong) -> Fault:
    return Fault(override or "''", f"this does not parse at character {wrong.at + 1}: {wrong.why}", meant=wrong.meant)


def _wrong(override: str) -> Wrong | None:
    """What is wrong with an override; None if it parses."""
    name, equals, value = override.partition("=")
    key = KEY.match(name)
    if key is None or key.end() < len(name):
        return _wrong_key(name, key.end() if key else 0, equals + value)
    if not equals:
        return None if override.startswith("~") else Wrong(len(override), "expected key=value, or +recipe=NAME")
    said = _refused(override)
    if said is None:
        return None
    if "while evaluating" in said:  # it parses, as a call of one of Hydra's functions
        within = QUOTES.format("brackets")
        return Wrong(len(name) + 1, f"{said.splitlines()[0].partition(': ')[2]}; {within}")
    found = _wrong_value(value)
    return Wrong(len(name) + 1 + found.at, found.why) if found else Wrong(len(name) + 1, said.splitlines()[0])


def _refused(override: str) -> str | None:
    """Why Hydra refuses to parse an override, in its words; None where it does not."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_rule(override, "override")
    except HydraException as error:
        return str(error)
    return None


def _wrong_key(name: str, at: int, rest: str) -> Wrong:
    """What stands before = and is no key, the key that it was perhaps meant to be, and the rest of the override."""
    from runner.config.schema import keys

    if not re.search(r"\w", name):
        return Wrong(at, "a key is missing before =: expected key=value, or +recipe=NAME")
    signs, plain = re.match(r"[+~]*", name)[0], re.sub(r"\.+", ".", re.sub(r"[^\w.]", "", name)).strip(".")  # type: ignore[index]
    meant = plain if plain in keys() else nearest_key(plain, list(keys()))
    why = (
        f"expected key=value, and no key has {name[at : at + 1]!r} there" if at < len(name) else "a key ends before it"
    )
    return Wrong(at, why, f"{signs}{meant}{rest}" if meant else None)


def _wrong_value(value: str) -> Wrong | None:
    """The first thing in a value that keeps it from being parsed: quotes or brackets that do not pair, or what only a
    text in quotes may have."""
    opened: list[int] = []
    place = begin = 0  # `begin` is where the element at `place` begins: a list has several
    while place < len(value):
        character, before = value[place], value[begin:place].strip()
        after = place + 1
        if character in "\"'":
            if before:
                return Wrong(place, f"the quote {character} stands within a text; {QUOTES.format('quotes')}")
            closed = re.compile(rf"(?:[^{character}\\]|\\.)*{character}\s*", re.DOTALL).match(value, after)
            if closed is None:
                return Wrong(place, f"the quote {character} is never closed")
            after = closed.end()
            if value[after : after + 1] not in ("", *",:)]}"):
                return Wrong(after, "nothing may follow a closing quote; have the quotes hold the whole text")
        elif character == "\\":
            after = place + 2  # what is escaped is a character like others
        elif value.startswith("${", place):
            after = value.find("}", place) + 1
            if not after:
                return Wrong(place, "the ${ is never closed")
        elif character in BRACKETS:
            if not FUNCTION.fullmatch(value[begin:place]) if character == "(" else before:
                return Wrong(place, f"the {character} stands within a text; {QUOTES.format('brackets')}")
            opened.append(place)
        elif character in BRACKETS.values():
            if not opened or BRACKETS[value[opened.pop()]] != character:
                return Wrong(place, f"the {character} closes nothing; {QUOTES.format('brackets')}")
        elif character == "," and not (before and value[after:].strip(" )]}")):
            return Wrong(place, f"nothing stands on one side of the comma; {QUOTES.format('commas')}")
        elif character == "=" and not opened:
            apart = "; two overrides are two arguments" if re.search(r"\s[\w.]+$", value[:place]) else ""
            return Wrong(place, f"a second =; {QUOTES.format('=')}{apart}")
        elif not UNQUOTED.match(character):
            return Wrong(place, f"{character!r} is for texts in quotes alone: 'prompts.text=\"a cat!\"'")
        place = after
        begin = after if character in "[{(,:" else begin
    if opened:
        return Wrong(opened[-1], f"the {value[opened[-1]]} is never closed; {QUOTES.format('brackets')}")
    return None
