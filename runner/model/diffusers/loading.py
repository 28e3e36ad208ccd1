"""From the folder of a diffusers pipeline to one that is ready to sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor

from runner.hardware.casting import DTYPES

from .. import parts
from ..checkpoint import CheckpointError
from . import folder as folders
from .rules import checkpoint_faults

VARIANT = "fp16"  # some releases have their weights in files of this suffix only


def load(
    model: Mapping[str, Any], sample_method: str, device: str, transformer: Any = None, without: Iterable[str] = ()
) -> Any:
    """The pipeline of a model section (the keys of conf/model/diffusers.yaml) in eval mode, without gradients.

    Its transformer is the folder's, or the one given, and then the folder's is not read. Parts named in `without` are
    left out. The solver is the folder's own, which `sample_method` must name. Raises CheckpointError where the folder
    cannot be used.
    """
    folder = _folder(model)
    if sample_method != folders.sample_method(folder):
        raise CheckpointError(f"{folder} has {folders.sample_method(folder)} for a solver, not {sample_method}")
    if transformer is None:
        transformer = load_transformer(model, device)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder,
        transformer=transformer,
        torch_dtype=DTYPES[model["dtype"]],
        variant=_variant(folder),
        local_files_only=True,
        **dict.fromkeys(without),
    ).to(device)
    for part in parts(pipeline).values():
        part.eval().requires_grad_(False)
    if model["enable_tiling"]:
        if not hasattr(pipeline.vae, "enable_tiling"):
            raise CheckpointError(f"{type(pipeline.vae).__name__} cannot decode in tiles: model.enable_tiling=false")
        pipeline.vae.enable_tiling()
    return pipeline


def load_transformer(model: Mapping[str, Any], device: str) -> Any:
    """The float transformer of a model section alone, in eval mode, without gradients."""
    folder = _folder(model)
    transformer, info = _transformer_class(folder).from_pretrained(
        folder,
        subfolder="transformer",
        torch_dtype=DTYPES[model["dtype"]],
        variant=_variant(folder),
        local_files_only=True,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(map(str, info[kind])):
            raise CheckpointError(f"{folder / 'transformer'}: {len(names)} {kind}: {', '.join(names[:12])}")
    return transformer.to(device).eval().requires_grad_(False)


def skeleton(model: Mapping[str, Any]) -> Any:
    """The transformer of a model section with parameters on the meta device, and all its buffers.

    Buffers are in no export: tables that the model computes when it is made are computed, what the checkpoint holds of
    them is read.
    """
    folder, dtype = _folder(model), DTYPES[model["dtype"]]
    kind = _transformer_class(folder)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as from_pretrained does, so that the tables are the same to the bit
    try:
        with init_empty_weights(include_buffers=False):
            transformer = kind.from_config(kind.load_config(folder, subfolder="transformer", local_files_only=True))
    finally:
        torch.set_default_dtype(before)
    exempt = tuple(kind._keep_in_fp32_modules or ())
    if not exempt:
        transformer.to(dtype)
    saved = transformer.state_dict().keys() - dict(transformer.named_parameters()).keys()
    dtypes = {name: torch.float32 if set(exempt) & set(name.split(".")) else dtype for name in saved}
    transformer.load_state_dict(_read(folder / "transformer", dtypes), strict=False, assign=True)
    return transformer.eval().requires_grad_(False)


def apply_template(prompt: str, template: str) -> str:
    """`prompt` in a text with one {}."""
    return template.replace("{}", prompt)


def _read(folder: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """The tensors of these names that the safetensors of a folder hold, floating-point ones each in its dtype."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")) if dtypes else ():
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in dtypes.keys() & set(file.keys()):
                tensor = file.get_tensor(name)
                found[name] = tensor.to(dtypes[name]) if tensor.is_floating_point() else tensor
    return found


def _folder(model: Mapping[str, Any]) -> Path:
    folder = Path(model["checkpoint"]).expanduser()
    if faults := list(checkpoint_faults(folder)):
        raise CheckpointError("; ".join(faults))
    return folder


def _transformer_class(folder: Path) -> Any:
    library, name = folders.parts(folder)["transformer"]
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise CheckpointError(f"{folder}: its transformer is a {name} of {library}, which this diffusers does not have")
    return kind


def _variant(folder: Path) -> str | None:
    transformer = folder / "transformer"
    files = [*transformer.glob("diffusion_pytorch_model*.safetensors"), *transformer.glob("*.safetensors.index*.json")]
    return VARIANT if files and all(f".{VARIANT}" in file.name for file in files) else None
