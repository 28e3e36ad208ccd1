"""What Open-Sora-Plan v1.2 allows and where its parts lie. No torch here: the desk asks before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.model import identity, object_file
from runner.model.osp12.templates import TEMPLATES
from runner.sampler.methods import SAMPLE_METHODS as SAMPLE_METHODS  # for the desk

CLASS_NAMES = (
    "OpenSoraT2V",
    "OSP12Transformer",
)  # what config.json may call the transformer: the release, this project
PARTS = ("vae", "text_encoder")  # beside the transformer
GUIDANCE_BATCHES = ("joint", "separate")
TRANSFORMER = ""  # the checkpoint is the transformer's folder
FROM_HUB = True
REFERENCES = False
AUTOENCODERS = ("CausalVAEModel_D4_4x8x8",)
TEXT_ENCODER = "google/mt5-xxl"  # the release does not ship its text encoder
TIME_FACTOR = 4  # frames a latent frame holds, after the first, which stands alone
SIDE_FACTOR = 16  # pixels a token spans: 8 by the VAE, 2 by the patches
NOISE_IN_DTYPE = True  # noise is drawn in what the transformer computes in
MAX_SEQUENCE_LENGTH = 512  # tokens of text that the model was trained with
HEADS = "num_attention_heads"  # the key of config.json that says how many heads attention has
LAYERS = 32  # blocks of the release
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")


def faults(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) for each value of the model section that cannot work; a missing key is not judged."""
    frames = model.get("num_frames")
    if frames is not None and frames % TIME_FACTOR != 1:
        below = max(1, (frames - 1) // TIME_FACTOR * TIME_FACTOR + 1)
        yield "num_frames", f"expected {TIME_FACTOR}n+1 frames, the nearest are {below} and {below + TIME_FACTOR}"
    for key in ("height", "width"):
        side = model.get(key)
        if side is not None and side % SIDE_FACTOR:
            below = max(SIDE_FACTOR, side // SIDE_FACTOR * SIDE_FACTOR)
            yield key, f"expected a multiple of {SIDE_FACTOR} pixels, the nearest are {below} and {below + SIDE_FACTOR}"
    if model.get("max_sequence_length", 0) > MAX_SEQUENCE_LENGTH:
        yield "max_sequence_length", f"expected at most {MAX_SEQUENCE_LENGTH} tokens, which the model was trained with"
    if model.get("ae", AUTOENCODERS[0]) not in AUTOENCODERS:
        yield "ae", f"expected {AUTOENCODERS[0]}, the only autoencoder of this model"
    if model.get("model_type", "dit") != "dit":
        yield "model_type", "expected dit, the only type of this model"
    template = model.get("template")
    if template is not None and template not in TEMPLATES and template.count("{}") != 1:
        yield "template", f"expected {', '.join(TEMPLATES)}, or a text of your own with {{}} where the prompt goes"


def settled(model: Mapping[str, Any]) -> dict[str, Any]:
    """Values that stand for others, for a section without faults: none here."""
    return {}


def defaults(folder: Path) -> dict[str, Any]:
    """What the checkpoint's own files say of keys: nothing here."""
    return {}


def sample_methods(folder: Path | None) -> tuple[str, ...]:
    """The solvers that the model can be sampled with, whatever the checkpoint."""
    return SAMPLE_METHODS


def solver(folder: Path) -> dict[str, Any] | None:
    """The configuration of the checkpoint's solver: it brings none."""
    return None


def checkpoint_faults(folder: Path) -> Iterator[str]:
    """Why `folder` is no transformer checkpoint of this model, in sentences; none if it is one as far as names tell."""

    def has_weights(folder: Path) -> bool:
        return any((folder / name).is_file() for name in WEIGHTS)

    return identity.faults(folder, CLASS_NAMES, " or ".join(WEIGHTS), has_weights)


def snapshot(name: str, revision: str) -> Path | None:
    """The folder of a hub id on this machine: not looked for, loading does."""
    return None


def blocks(model: Mapping[str, Any]) -> int:
    """How many blocks the transformer has. ValueError where its config.json does not tell."""
    return int(object_file.read(Path(model["checkpoint"]) / "config.json").get("num_layers", LAYERS))


def parts(model: Mapping[str, Any]) -> dict[str, Any]:
    """Where the files of a resolved model section are, by part."""
    return {"transformer": model["checkpoint"], **{part: model[part] for part in PARTS}}


def components(model: Mapping[str, Any], folder: Path | None) -> dict[str, str]:
    """Where the VAE and the text encoder of a model section are, as the loader wants them: folders or hub ids.

    What the section leaves null is looked for inside the checkpoint's `folder`, then beside it (the layout of the
    release); the text encoder falls back to its hub id. None as `folder` is a checkpoint that is on the hub only.
    """
    found: dict[str, str] = {}
    for part in ("vae", "text_encoder"):
        if model.get(part) is not None:
            found[part] = model[part]
        elif folder is not None:
            places = [place for place in (folder / part, folder.parent / part) if (place / "config.json").is_file()]
            if places:
                found[part] = str(places[0])
    return {"text_encoder": TEXT_ENCODER, **found}


def files(texts: Sequence[str]) -> list[Path]:
    """The references that prompts name: none, they are words alone."""
    return []


def with_references(
    texts: Sequence[str], references: Any, strategies: Any, model: Mapping[str, Any]
) -> tuple[list[str], list[tuple[str, str]]]:
    """The prompts as they are: they are words alone."""
    return list(texts), []
