"""Which blocks are reused at which step: the decision alone, and the files that hold it. Imports no torch.

A rectangle is what msModelSlim searches and MindIE-SD applies: from a step on, of every `step_interval` steps the first
computes all blocks, the others reuse one range of them. Segments say the same for each refresh on its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Range = tuple[int, int]  # the blocks [start, end)
GENERATIONS = 6  # of one prompt: what the probes and the verification of a search may compute together


@dataclass(frozen=True)
class Policy:
    """ranges[t] are the blocks that are reused at step t, from the last step before it that computed all (None)."""

    ranges: tuple[Range | None, ...]

    def reuses(self, block: int, step: int) -> bool:
        """Whether this block is not computed at this step."""
        found = self.ranges[step]
        return found is not None and found[0] <= block < found[1]

    def kept(self, step: int) -> Range | None:
        """The blocks whose change must be kept at this step, for the steps that reuse it."""
        following = self.ranges[step + 1] if step + 1 < len(self.ranges) else None
        return following if self.ranges[step] is None else None

    def skipped(self) -> int:
        """Blocks that are not computed, over all steps."""
        return sum(end - start for start, end in filter(None, self.ranges))

    def source(self, step: int) -> int:
        """The step whose change is reused at `step`."""
        while self.ranges[step] is not None:
            step -= 1
        return step


@dataclass(frozen=True)
class Rectangle:
    """msModelSlim's four numbers. Steps `step_start`, `step_start + step_interval`, ... compute all blocks."""

    step_start: int
    step_interval: int
    block_start: int
    num_blocks: int

    def policy(self, num_steps: int, num_blocks: int) -> Policy:
        """The decision for a model of `num_blocks` blocks; ValueError where the range does not fit in it."""
        end = self.block_start + self.num_blocks
        if end > num_blocks:
            raise ValueError(f"blocks {self.block_start} to {end - 1} are to be reused; the model has {num_blocks}")
        reused = (self.block_start, end) if self.num_blocks else None
        return Policy(
            tuple(
                None if t < self.step_start or (t - self.step_start) % self.step_interval == 0 else reused
                for t in range(num_steps)
            )
        )

    def to_json(self) -> dict[str, Any]:
        return {f"cache_{name}": value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Segment:
    """Step `step` computes all blocks, the `reuses` steps after it reuse [block_start, block_start + num_blocks)."""

    step: int
    reuses: int
    block_start: int
    num_blocks: int


@dataclass(frozen=True)
class Segments:
    """One range of blocks for each refresh. Steps that no segment names compute all blocks."""

    num_steps: int
    segments: tuple[Segment, ...]

    def policy(self, num_steps: int, num_blocks: int) -> Policy:
        """The decision; ValueError for another number of steps than it was made for, or a range that does not fit."""
        if num_steps != self.num_steps:
            raise ValueError(f"the cache configuration is for {self.num_steps} steps; this run has {num_steps}")
        ranges: list[Range | None] = [None] * num_steps
        free = 0
        for each in self.segments:
            end, last = each.block_start + each.num_blocks, each.step + each.reuses
            if each.step < free or last >= num_steps:
                raise ValueError(f"the segment at step {each.step} overlaps another or leaves the {num_steps} steps")
            if end > num_blocks:
                raise ValueError(f"blocks {each.block_start} to {end - 1} are to be reused; the model has {num_blocks}")
            ranges[each.step + 1 : last + 1] = [(each.block_start, end) if each.num_blocks else None] * each.reuses
            free = last + 1
        return Policy(tuple(ranges))

    @classmethod
    def of(cls, policy: Policy) -> Segments:
        """The segments that decide as a policy does."""
        segments: list[Segment] = []
        for step, reused in enumerate(policy.ranges):
            if reused and (source := policy.source(step)) == step - 1:
                reuses = next((t for t in range(step, len(policy.ranges)) if policy.ranges[t] != reused), None)
                count = (len(policy.ranges) if reuses is None else reuses) - step
                segments.append(Segment(source, count, reused[0], reused[1] - reused[0]))
        return cls(len(policy.ranges), tuple(segments))

    def to_json(self) -> dict[str, Any]:
        return {"cache_num_steps": self.num_steps, "cache_segments": [asdict(each) for each in self.segments]}


Config = Rectangle | Segments

# The names in msModelSlim's files, and in MindIE-SD's, whose block_end is the first block after the range.
THEIRS = ("cache_step_start", "cache_step_interval", "cache_block_start", "cache_num_blocks")
MINDIE = ("step_start", "step_interval", "block_start", "block_end")
IDLE = ("step_end", "steps_count", "blocks_count", "method")  # of MindIE-SD's CacheConfig; step_end has no effect there


def read(path: Path) -> Config:
    """The configuration in a file: msModelSlim's, MindIE-SD's, or segments of ours. ValueError says what is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    try:
        return parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse(content: Mapping[str, Any]) -> Config:
    """The configuration in a mapping with any of the three sets of names."""
    if "cache_segments" in content:
        _only(content, ("cache_num_steps", "cache_segments"))
        rows = content["cache_segments"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("cache_segments is no list of objects")
        names = ("step", "reuses", "block_start", "num_blocks")
        for row in rows:
            _only(row, names)
        segments = tuple(Segment(*_numbers(row, names)) for row in rows)
        return Segments(_numbers(content, ("cache_num_steps",))[0], segments)
    if set(THEIRS) & set(content):
        _only(content, THEIRS)
        found = Rectangle(*_numbers(content, THEIRS))
    else:
        _only(content, (*MINDIE, *IDLE))
        start, interval, first, end = _numbers(content, MINDIE)
        if end < first:
            raise ValueError(f"block_end is {end}, before block_start {first}")
        found = Rectangle(start, interval, first, end - first)
    if found.step_interval < 1:
        raise ValueError("the step interval is 0; it must be at least 1 (which reuses nothing)")
    return found


def write(config: Config, path: Path) -> None:
    """Write a configuration: a rectangle as msModelSlim's tools read it."""
    path.write_text(json.dumps(config.to_json(), indent=4) + "\n", encoding="utf-8")


def _only(content: Mapping[str, Any], names: Sequence[str]) -> None:
    if unknown := [name for name in content if name not in names]:
        raise ValueError(f"{', '.join(map(repr, unknown))} is not known; expected {', '.join(names)}")


def _numbers(content: Mapping[str, Any], names: Sequence[str]) -> list[int]:
    for name in names:
        value = content.get(name)
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is {value!r}; expected a whole number, 0 or more")
    return [content[name] for name in names]
