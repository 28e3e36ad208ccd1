"""Which folders are of Stable Diffusion 3, and what it allows beyond any diffusers pipeline. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.model.diffusers import folder as folders
from runner.model.diffusers import rules
from runner.model.diffusers.rules import (  # noqa: F401  # for the desk
    FROM_HUB,
    HEADS,
    PARTS,
    REFERENCES,
    SAMPLE_METHODS,
    TRANSFORMER,
    blocks,
    components,
    faults,
    files,
    sample_methods,
    settled,
    snapshot,
    solver,
    with_references,
)

GUIDANCE_BATCHES = ("joint",)  # the pipeline knows no other
NOISE_IN_DTYPE = True  # noise is drawn in what the text encoders compute in
PIPELINE = "StableDiffusion3Pipeline"
THIRD = ("text_encoder_3", "tokenizer_3")


def left_out(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of the folder that a model section does without."""
    return () if model["text_encoder_3"] else THIRD


def defaults(folder: Path) -> dict[str, Any]:
    """What the checkpoint's own files say of keys, by full key: its solver. All else is the guide's."""
    found = rules.defaults(folder)
    return {key: found[key] for key in ("sampler.sample_method",) if key in found}


def checkpoint_faults(folder: Path) -> Iterator[str]:
    """Why `folder` is no release of this model, in sentences."""
    found = list(rules.checkpoint_faults(folder))
    yield from found
    if not found and (name := folders.index(folder)["_class_name"]) != PIPELINE:
        yield f"{folder} is a {name}: expected a {PIPELINE} (model=diffusers takes others)"


def parts(model: Mapping[str, Any]) -> dict[str, Any]:
    """Where the files of a resolved model section are, by part."""
    return {name: place for name, place in rules.parts(model).items() if name not in left_out(model)}
