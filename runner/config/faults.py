"""What is wrong with a configuration, said so that it can be put right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

_UNSAID = object()


@dataclass(frozen=True)
class Fault:
    """One fault: the full key, what was expected there, what stands there instead, and what was perhaps meant."""

    key: str
    expected: str
    value: object = _UNSAID
    meant: str | None = None

    def __str__(self) -> str:
        given = "" if self.value is _UNSAID else f" = {_short(self.value)}"
        return f"{self.key}{given}: {self.expected}" + (f"; did you mean {self.meant}?" if self.meant else "")


class Refused(Exception):
    """A run that is not started, with every reason. The door prints it and ends with exit status 2."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        return "\n".join([f"{len(self.faults)} faults:", *(f"  {fault}" for fault in self.faults)])


def nearest(word: str, known: Sequence[str], likeness: float = 0.6) -> str | None:
    """The one of `known` that `word` was perhaps meant to be."""
    found = get_close_matches(word, known, n=1, cutoff=likeness)
    return found[0] if found else None


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that `key` was perhaps meant to be: of the same name, of a like name in its section, or alike."""
    section, _, name = key.rpartition(".")
    if elsewhere := [other for other in known if other.rpartition(".")[2] == name]:
        return elsewhere[0]
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    names = {other.rpartition(".")[2]: other for other in known}
    if found := nearest(name, list(siblings)):
        return siblings[found]
    if found := nearest(key, list(known), 0.85):  # a section in common makes any two keys alike
        return found
    found = nearest(name, list(names))
    return names[found] if found else None


def spell(value: object) -> str:
    """A value as YAML and the command line write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(spell, value))}]"
    return str(value)


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else spell(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
