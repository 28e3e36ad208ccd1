"""What every model tells before anything is loaded: one protocol for the `rules` of all rooms. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Rules(Protocol):
    """A module without torch, `runner.model.<name>.rules`.

    A `model` is the model section of a configuration; `folder` is the checkpoint's, None for one that is on the hub.
    """

    SAMPLE_METHODS: tuple[str, ...]  # solvers that it can be sampled with; none where its checkpoint says
    PARTS: tuple[str, ...]  # keys of the section that place parts beside the transformer
    GUIDANCE_BATCHES: tuple[str | None, ...]  # values of sampler.guidance_batch that it knows
    TRANSFORMER: str  # the folder in the checkpoint's that has the transformer's config.json; "" for that folder itself
    HEADS: str  # the key of that config.json that says how many heads attention has
    NOISE_IN_DTYPE: bool  # whether its reference draws noise in what it computes in
    FROM_HUB: bool  # whether a hub id may be downloaded as it is loaded, else it must be in the hub's cache before
    REFERENCES: bool  # whether prompts may name images and videos

    def faults(self, model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(key, sentence) for each value of the section that cannot work; a missing key is not judged."""

    def settled(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Values that stand for others, for a section without faults."""

    def defaults(self, folder: Path) -> dict[str, Any]:
        """What the checkpoint's own files say of keys, by full key."""

    def sample_methods(self, folder: Path | None) -> tuple[str, ...]:
        """The solvers that the model can be sampled with from this checkpoint."""

    def solver(self, folder: Path) -> dict[str, Any] | None:
        """The configuration of the checkpoint's solver, None where it brings none. ValueError if it is unreadable."""

    def checkpoint_faults(self, folder: Path) -> Iterator[str]:
        """Why `folder` is no checkpoint of this model, in sentences; none if it is one as far as names tell."""

    def snapshot(self, name: str, revision: str) -> Path | None:
        """The folder of a hub id at a revision on this machine, None where it is not looked for or not there."""

    def blocks(self, model: Mapping[str, Any]) -> int:
        """How many blocks the transformer has, or a few more. OSError or ValueError where no file tells."""

    def parts(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Where the files of a resolved section are, by part."""

    def components(self, model: Mapping[str, Any], folder: Path | None) -> dict[str, str]:
        """Where the parts beside the transformer are, as the loader wants them: folders or hub ids."""

    def files(self, texts: Sequence[str]) -> list[Path]:
        """The references that prompts name, in their order."""

    def with_references(
        self, texts: Sequence[str], references: Any, strategies: Any, model: Mapping[str, Any]
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """The prompts with their references and mask strategies in them, and (key, sentence) of faults."""


class Room(Protocol):
    """A package, `runner.model.<name>`, that loads a model; asking it for one of these imports torch."""

    def load(self, model: Mapping[str, Any], sample_method: str, device: str, transformer: Any = None) -> Any:
        """The pipeline of a section in eval mode, without gradients; `transformer` takes the place of its own."""

    def load_transformer(self, model: Mapping[str, Any], device: str) -> Any:
        """The float transformer of a section alone, in eval mode, without gradients."""

    def skeleton(self, model: Mapping[str, Any]) -> Any:
        """The transformer of a section with parameters on the meta device."""

    def apply_template(self, prompt: str, template: str) -> str:
        """`prompt` in a template: the name of one that the model has, or a text with one {}."""
