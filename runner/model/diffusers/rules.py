"""Which folders of diffusers pipelines can be run, and what their calls take. No torch: the desk asks before anything
is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.model import headers
from runner.model.object_file import read

from . import folder as folders
from .folder import snapshot as snapshot  # for the desk
from .signature import call

SAMPLE_METHODS: tuple[str, ...] = ()  # the folder says
PARTS: tuple[str, ...] = ()  # all are in the folder
GUIDANCE_BATCHES: tuple[str | None, ...] = (None,)  # the pipeline decides
FROM_HUB = False  # what it takes is read from its files first
REFERENCES = False
TRANSFORMER = "transformer"  # the folder in the checkpoint's that has its config.json
NOISE_IN_DTYPE = False  # each pipeline draws noise as it likes
HEADS = "num_attention_heads"  # the key there that says how many heads attention has
# Arguments that make more of a call than text to images or to a video.
OTHER_INPUTS = (
    *(
        "image",
        "images",
        "mask_image",
        "control_image",
        "control_mask",
        "init_image",
        "input_image",
        "reference_images",
    ),
    *("video", "mask", "control_video", "conditioning_frames", "conditions", "audio", "audios", "lyrics", "num_views"),
)
OPTIONAL = ("num_frames", "height", "width", "max_sequence_length", "negative_prompt")
# What the runner gives to a call itself.
GIVEN = (
    *("prompt", "num_inference_steps", "guidance_scale", "generator", "output_type", "return_dict", "timesteps"),
    *("sigmas", "latents", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback", "callback_steps"),
)


def sample_methods(folder: Path | None) -> tuple[str, ...]:
    """The solver that the checkpoint was released with, the only one that is known to fit it."""
    method = folder and folders.sample_method(folder)
    return (method,) if method else ()


def defaults(folder: Path) -> dict[str, Any]:
    """What the checkpoint's own files, and the defaults of its pipeline's call, say of keys, by full key."""
    found: dict[str, Any] = {"sampler.sample_method": folders.sample_method(folder)}
    arguments = _call(folder)
    for key, name in (
        ("sampler.num_sampling_steps", "num_inference_steps"),
        ("sampler.guidance_scale", "guidance_scale"),
        *((f"model.{name}", name) for name in OPTIONAL if name != "negative_prompt"),
    ):
        default = arguments.get(name)
        if isinstance(default, int | float):
            found[key] = float(default) if key == "sampler.guidance_scale" else default
    return {key: value for key, value in found.items() if value is not None}


def faults(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) for each value of the model section that cannot work; a missing key is not judged."""
    if model.get("template", "{}").count("{}") != 1:
        yield "template", "expected a text with one {} where the prompt goes"
    folder = Path(model.get("checkpoint", "")).expanduser()
    arguments = _call(folder)
    if not arguments:
        return  # the checkpoint is what is wrong
    pipeline = folders.index(folder)["_class_name"]
    for name in OPTIONAL:
        if model.get(name) is not None and name not in arguments:
            yield name, f"expected null: {pipeline} takes no {name}"
    for name in model.get("call") or {}:
        if name in GIVEN or name in model:
            yield "call", f"{name} is not for call to set: it has a key of its own, or is the runner's"
        elif name not in arguments:
            yield "call", f"{pipeline} takes no {name}; it takes {', '.join(a for a in arguments if a not in GIVEN)}"


def settled(model: Mapping[str, Any]) -> dict[str, Any]:
    """Values that stand for others, for a section without faults: none here."""
    return {}


def checkpoint_faults(folder: Path) -> Iterator[str]:
    """Why `folder` is no pipeline that can be run here, in sentences; none if it is one as far as names tell."""
    if not (folder / folders.INDEX).is_file():
        yield f"{folder} has no {folders.INDEX}: expected the folder of a diffusers pipeline"
        return
    try:
        pipeline, parts = folders.index(folder).get("_class_name"), folders.parts(folder)
    except ValueError as error:
        yield str(error)
        return
    if "transformer" not in parts:
        has = next((f"it has a {name}" for name in ("unet", "prior", "decoder") if name in parts), "it has none")
        yield f"{folder} is a {pipeline}: expected a pipeline with a transformer, {has}"
        return
    if "transformer_2" in parts:
        yield f"{folder} is a {pipeline} with two transformers: expected one, which alone would be recorded"
    for name, (library, kind) in parts.items():
        if library not in folders.LIBRARIES and (folder / f"{library}.py").is_file():
            yield f"{folder}: its {name} is {kind} of {library}.py, and code that lies in a checkpoint is not run"
    yield from _text_alone(folder, str(pipeline))
    yield from _missing(folder)


def _text_alone(folder: Path, pipeline: str) -> Iterator[str]:
    arguments = call(pipeline)
    if arguments is None:
        yield f"{folder} is a {pipeline}, which the installed diffusers does not have"
    elif "prompt" not in arguments:
        yield f"{folder} is a {pipeline}, which takes no prompt: expected text to images or to a video"
    elif others := [name for name in OTHER_INPUTS if name in arguments]:
        yield f"{folder} is a {pipeline}, which takes {', '.join(others)}: expected text to images or to a video"


def _missing(folder: Path) -> Iterator[str]:
    transformer = folder / "transformer"
    if not (transformer / "config.json").is_file():
        yield f"{transformer} has no config.json"
    elif not any(transformer.glob("*.safetensors")) and not any(transformer.glob("*.bin")):
        yield f"{transformer} has no weights: expected diffusion_pytorch_model.safetensors, or shards with an index"
    if folders.sample_method(folder) is None:
        yield f"{folder / 'scheduler'} has no {folders.SCHEDULER_FILE} that names its class"


def blocks(model: Mapping[str, Any]) -> int:
    """How many blocks the transformer has, or a few more: all entries of its lists of modules, which need not all be
    blocks, or of those that `blocks` names. OSError or ValueError where its weights do not tell."""
    found = headers.lists(Path(model["checkpoint"]) / TRANSFORMER)
    return sum(found.get(name, 0) for name in model["blocks"]) if model["blocks"] else sum(found.values())


def solver(folder: Path) -> dict[str, Any] | None:
    """The configuration of the folder's solver. ValueError where there is none."""
    return read(folder / "scheduler" / folders.SCHEDULER_FILE)


def parts(model: Mapping[str, Any]) -> dict[str, Any]:
    """Where the files of a resolved model section are, by part."""
    root = Path(model["checkpoint"])
    found = {name: str(root / name) for name in folders.parts(root) if (root / name).is_dir()}
    return {"pipeline": str(root / folders.INDEX), **found}


def components(model: Mapping[str, Any], folder: Path | None) -> dict[str, str]:
    """Parts that a key could place elsewhere: none."""
    return {}


def files(texts: Sequence[str]) -> list[Path]:
    """The references that prompts name: none, they are words alone."""
    return []


def with_references(
    texts: Sequence[str], references: Any, strategies: Any, model: Mapping[str, Any]
) -> tuple[list[str], list[tuple[str, str]]]:
    """The prompts as they are: they are words alone."""
    return list(texts), []


def _call(folder: Path) -> dict[str, Any]:
    try:
        return call(str(folders.index(folder).get("_class_name"))) or {}
    except ValueError:
        return {}
