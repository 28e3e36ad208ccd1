"""From the released layout to a pipeline that is ready to sample."""

from collections.abc import Mapping
from typing import Any

import torch

from runner.hardware.casting import DTYPES
from runner.sampler import make_scheduler

from ..checkpoint import beside, hollow, locate, read_config
from ..text import load_text_encoder
from . import rules
from .pipeline import OSP12Pipeline
from .transformer import OSP12Transformer
from .vae import OSP12VAE


def load(
    model: Mapping[str, Any], sample_method: str, device: str, transformer: OSP12Transformer | None = None
) -> OSP12Pipeline:
    """The pipeline of a model section (the keys of conf/model/osp12.yaml) in eval mode, without gradients.

    Its transformer is the checkpoint's, or the one given, and then the checkpoint's is not read. Of the section
    `checkpoint` and `dtype` are needed; `vae`, `text_encoder`, `revision`, `cache_dir`, `enable_tiling`,
    `tile_overlap_factor` and `save_memory` count when they are there. Parts are read in `dtype` and go to the device
    one by one, so that the host holds no more than the largest. Raises CheckpointError, naming the place, when a part
    is missing or does not fit.
    """
    if model["dtype"] not in DTYPES:
        raise ValueError(f"dtype is {model['dtype']!r}; it must be one of {', '.join(DTYPES)}")
    dtype, checkpoint, cache_dir = DTYPES[model["dtype"]], str(model["checkpoint"]), model.get("cache_dir")
    places = _places(model, checkpoint)
    scheduler = make_scheduler(sample_method)

    def hub(place: str) -> dict[str, Any]:
        """The revision is one of the checkpoint's repository and means nothing to another."""
        same = place.split("/")[:2] == checkpoint.split("/")[:2]
        return {"cache_dir": cache_dir, "revision": model.get("revision") if same else None}

    text_encoder, tokenizer = load_text_encoder(places["text_encoder"], dtype, **hub(places["text_encoder"]))
    text_encoder.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` without its types
    vae = OSP12VAE.from_pretrained(places["vae"], torch_dtype=dtype, **hub(places["vae"])).to(device)
    if model.get("enable_tiling"):
        vae.enable_guide_tiling(model.get("tile_overlap_factor", 0.25), bool(model.get("save_memory")))
    if transformer is None:
        transformer = load_transformer(model, device)
    transformer.to(torch.device(device))  # type: ignore[arg-type]  # so does diffusers
    for part in (text_encoder, vae, transformer):
        part.eval().requires_grad_(False)
    return OSP12Pipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
    )


def load_transformer(model: Mapping[str, Any], device: str) -> OSP12Transformer:
    """The float transformer of a model section alone, in eval mode, without gradients."""
    options = {"cache_dir": model.get("cache_dir"), "revision": model.get("revision")}
    transformer = OSP12Transformer.from_pretrained(model["checkpoint"], torch_dtype=DTYPES[model["dtype"]], **options)
    return transformer.to(device).eval().requires_grad_(False)


def skeleton(model: Mapping[str, Any]) -> OSP12Transformer:
    """The transformer of a model section on the meta device: modules, shapes and dtype, no weights."""
    folder = locate(model["checkpoint"], revision=model.get("revision"), cache_dir=model.get("cache_dir"))
    transformer = hollow(OSP12Transformer, read_config(folder), str(folder)).to(DTYPES[model["dtype"]])
    return transformer.eval().requires_grad_(False)


def _places(model: Mapping[str, Any], checkpoint: str) -> dict[str, str]:
    """Folder or hub id of "vae" and "text_encoder"; on the hub the release has its VAE beside the transformers'."""
    return beside(checkpoint, model, rules, "vae", "/".join([*checkpoint.split("/")[:2], "vae"]))
