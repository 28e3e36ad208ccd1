"""What Open-Sora 1.2 allows, what its sizes come to and where its parts lie. No torch here: the desk asks first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.model import identity, object_file

from .masks import parse_mask_strategy, strategy_text
from .prompts import extract_json, split_prompt
from .sizes import ASPECT_TABLES, MICRO_LATENTS, frame_count, image_size, latent_sizes

SAMPLE_METHODS = ("RFLOW",)
PARTS = ("text_encoder", "vae3d")  # beside the transformer; of vae2d the released config is known
GUIDANCE_BATCHES = ("joint", "separate")
TRANSFORMER = ""  # the checkpoint is the transformer's folder
FROM_HUB = True
REFERENCES = True
TEXT_ENCODER = "DeepFloyd/t5-v1_1-xxl"
# What the folders of the release are called on the hub, beside their plain names.
RELEASED = {
    "text_encoder": "t5-v1_1-xxl",
    "vae2d": "pixart_sigma_sdxlvae_T5_diffusers",
    "vae3d": "OpenSora-VAE-v1.2",
}
CLASS_NAMES = ("STDiT3", "OpenSora12Transformer")  # what config.json may call the transformer: release, this project
NOISE_IN_DTYPE = False  # noise is drawn in float32
HEADS = "num_heads"  # the key of config.json that says how many heads attention has
DEPTH = 28  # pairs of blocks of the release
STEMS = ("model", "diffusion_pytorch_model")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")


def faults(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) for each value of the model section that cannot work; a missing key is not judged."""
    if "num_frames" in model and (wrong := _wrong(frame_count, model["num_frames"], model.get("tables", "upstream"))):
        yield "num_frames", wrong
    if {"height", "width"} <= model.keys():
        given = [key for key in ("height", "width") if model[key] is not None]
        if len(given) == 1:
            other = "width" if given == ["height"] else "height"
            yield other, f"expected a number of pixels, since {given[0]} is given, too"
        elif not given and {"resolution", "aspect_ratio", "tables"} <= model.keys():
            yield from _size_faults(model)
    if {"num_frames", "loop", "condition_frame_length", "micro_frame_size"} <= model.keys() and model["loop"] > 1:
        yield from _loop_faults(model)
    if model.get("align") not in (None, MICRO_LATENTS):
        # The reference knows 5 and none; other alignments cut the autoencoder's chunks.
        yield "align", f"expected {MICRO_LATENTS}, the latent frames of a chunk, or null for none"


def _loop_faults(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    frames = length(model)
    if frames is not None and model["condition_frame_length"] >= frames:
        sentence = f"expected fewer than the {frames} latent frames of a clip, or going on from it adds nothing"
        yield "condition_frame_length", sentence


def _size_faults(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if wrong := _wrong(image_size, model["resolution"], model["aspect_ratio"], model["tables"]):
        yield ("aspect_ratio" if model["resolution"] in ASPECT_TABLES else "resolution"), wrong


def _wrong(function: Any, *arguments: Any) -> str | None:
    """What `function` has against these arguments, without the value, which the desk says."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error).partition("; ")[2].replace("it must be", "expected") or str(error)
    return None


def settled(model: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that names of sizes and lengths come to, and no names of others, for a section without faults."""
    size: dict[str, Any] = {"num_frames": frame_count(model["num_frames"], model["tables"])}
    if model["height"] is None:
        sides = image_size(model["resolution"], model["aspect_ratio"], model["tables"])
        return size | dict(zip(("height", "width"), sides, strict=True))
    sides = (model["height"], model["width"])
    return size | {"resolution": "{}x{}".format(*sides), "aspect_ratio": "{}:{}".format(*sides)}


def defaults(folder: Path) -> dict[str, Any]:
    """What the checkpoint's own files say of keys: nothing here."""
    return {}


def sample_methods(folder: Path | None) -> tuple[str, ...]:
    """The solvers that the model can be sampled with, whatever the checkpoint."""
    return SAMPLE_METHODS


def solver(folder: Path) -> dict[str, Any] | None:
    """The configuration of the checkpoint's solver: it brings none."""
    return None


def with_references(
    texts: Sequence[str], references: Any, strategies: Any, model: Mapping[str, Any]
) -> tuple[list[str], list[tuple[str, str]]]:
    """The prompts with their references and mask strategies in them, as released JSON, and (key, sentence) of faults.

    One value stands for all prompts, a list has one for each; what a prompt's own JSON says comes first. Files become
    absolute. A prompt that does not parse is a fault of "text".
    """
    wrong: list[tuple[str, str]] = []
    places = _each("references", references, len(texts), wrong)
    plans = _each("mask_strategy", strategies, len(texts), wrong)
    found = []
    for text, place, plan in zip(texts, places, plans, strict=True):
        try:
            [words], [own_place], [own_plan] = extract_json([text])
            split_prompt(words)
        except ValueError as error:
            wrong.append(("text", str(error)))
            continue
        of_files, of_plan = "text" if own_place else "references", "text" if own_plan else "mask_strategy"
        try:
            said = own_plan or strategy_text(plan)
            entries = parse_mask_strategy(said)
        except ValueError as error:
            wrong.append((of_plan, str(error)))
            continue
        files = _files(own_place or place or "")
        wrong += [(of_files, sentence) for file in files if (sentence := _unreadable(file))]
        wrong += [(of_plan, sentence) for sentence in _outside(said, entries, len(files), model)]
        if files and not any(loop == 0 for loop, *_ in entries):
            wrong.append((of_plan, 'expected one, or the reference has no effect; "0" makes it the first frame'))
        content = {"reference_path": ";".join(files), "mask_strategy": said}
        used = {key: value for key, value in content.items() if value}
        found.append(words + (json.dumps(used, ensure_ascii=False) if used else ""))
    return found, list(dict.fromkeys(wrong))


def files(texts: Sequence[str]) -> list[Path]:
    """The references that prompts name, in their order."""
    return [Path(file) for places in extract_json(texts)[1] for file in _files(places)]


def _each(key: str, value: Any, count: int, wrong: list[tuple[str, str]]) -> list[Any]:
    """One value for each prompt. A list of mappings is one strategy, as plain YAML."""
    if isinstance(value, list) and not all(isinstance(entry, Mapping) for entry in value):
        if len(value) != count:
            wrong.append((key, f"expected {count} entries, one for each prompt, not {len(value)}"))
        return (value + [None] * count)[:count]
    return [value] * count


def _files(places: str) -> list[str]:
    parts = [part.strip() for part in places.split(";") if part.strip()]
    return [
        part if part.startswith(("http://", "https://")) else str(Path(part).expanduser().absolute()) for part in parts
    ]


def _unreadable(file: str) -> str | None:
    """Why a reference cannot be used, as far as that shows without decoding it."""
    if file.startswith(("http://", "https://")):
        return f"{file}: nothing is fetched from a network here; give a file"
    path = Path(file)
    if not path.is_file():
        return f"there is no file {file}"
    if path.suffix.lower() in VIDEOS:
        return None if path.stat().st_size else f"{file} is empty"
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"{file} cannot be read as an image: {error}"
    return None


def length(model: Mapping[str, Any]) -> int | None:
    """Latent frames of a clip; None where the section does not tell."""
    named, chunk = model.get("num_frames"), model.get("micro_frame_size")
    if named is None or not chunk or _wrong(frame_count, named, tables := model.get("tables", "upstream")):
        return None
    return latent_sizes(frame_count(named, tables), 8, 8, chunk)[0]


def _outside(said: str, entries: Sequence[Sequence[Any]], count: int, model: Mapping[str, Any]) -> Iterator[str]:
    """What a strategy asks for that is not there; each loop adds one reference, the clip before it."""
    frames = length(model)
    for loop, reference, _, start, *_ in entries:
        if loop >= model.get("loop", loop + 1):
            yield f"{said!r} is for loop {loop}, and model.loop is {model['loop']}, counted from 0"
        elif reference >= count + loop:
            yield f"{said!r} asks for reference {reference} of {count}"
        elif frames is not None and not -frames <= start < frames:
            yield f"{said!r} starts at frame {start} of {frames} latent frames"


def checkpoint_faults(folder: Path) -> Iterator[str]:
    """Why `folder` is no transformer checkpoint of this model, in sentences; none if it is one as far as names tell."""
    weights = "model.safetensors, or one .pt or .pth"
    return identity.faults(folder, CLASS_NAMES, weights, has_weights, ("_class_name", "model_type"))


def snapshot(name: str, revision: str) -> Path | None:
    """The folder of a hub id on this machine: not looked for, loading does."""
    return None


def blocks(model: Mapping[str, Any]) -> int:
    """How many blocks the transformer has: the spatial ones and as many temporal ones. ValueError where it does not
    tell."""
    return 2 * int(object_file.read(Path(model["checkpoint"]) / "config.json").get("depth", DEPTH))


def has_weights(folder: Path) -> bool:
    """Whether a folder of the release has tensors in it, under any of the names that are read."""
    return any(
        (folder / f"{stem}.safetensors{rest}").is_file() for stem in STEMS for rest in ("", ".index.json")
    ) or any(path.suffix in (".pt", ".pth") for path in folder.iterdir())


def parts(model: Mapping[str, Any]) -> dict[str, Any]:
    """Where the files of a resolved model section are, by part."""
    return {"transformer": model["checkpoint"], **{part: model[part] for part in PARTS}}


def components(model: Mapping[str, Any], folder: Path | None) -> dict[str, str]:
    """Where the text encoder and the two autoencoders are, as the loader wants them: folders or hub ids.

    What the section leaves null is looked for inside the checkpoint's `folder`, then beside it, under its plain name or
    that of the release; the text encoder falls back to its hub id. vae2d may be missing.
    """
    found: dict[str, str] = {}
    for part, released in RELEASED.items():
        named = model.get(part)
        around = [folder, folder.parent] if folder is not None else []
        places = [Path(named).expanduser()] if named else [at / name for at in around for name in (part, released)]
        if part == "vae2d":  # the release has it in a folder of a whole pipeline
            places = [inner for place in places for inner in (place / "vae", place)]
        there = [place for place in places if (place / "config.json").is_file()]
        if there:
            found[part] = str(there[0])
        elif named:
            found[part] = named
    return {"text_encoder": TEXT_ENCODER, **found}
