"""From the released folders to a pipeline that is ready to sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from runner.hardware.casting import DTYPES

from ..checkpoint import beside, hollow, locate, read_config
from ..text import load_text_encoder
from . import rules
from .pipeline import OpenSora12Pipeline
from .rules import SAMPLE_METHODS
from .scheduler import RFlowScheduler
from .transformer import OpenSora12Transformer
from .vae import OpenSora12VAE

VAE = "hpcai-tech/OpenSora-VAE-v1.2"  # on the hub


def load(
    model: Mapping[str, Any], sample_method: str, device: str, transformer: OpenSora12Transformer | None = None
) -> OpenSora12Pipeline:
    """The pipeline of a model section (the keys of conf/model/opensora12.yaml) in eval mode, without gradients.

    Its transformer is the checkpoint's, or the one given, and then the checkpoint's is not read. Of the section
    `checkpoint` and `dtype` are needed, the other keys of places, of the hub and of the autoencoder count when they are
    there. The autoencoder's weights, of both halves, are those of vae3d. Raises CheckpointError, naming the place, when
    a part is missing or does not fit.
    """
    if model["dtype"] not in DTYPES:
        raise ValueError(f"dtype is {model['dtype']!r}; it must be one of {', '.join(DTYPES)}")
    if sample_method not in SAMPLE_METHODS:
        raise ValueError(f"sample_method is {sample_method!r}; it must be {' or '.join(SAMPLE_METHODS)}")
    dtype, places = DTYPES[model["dtype"]], beside(model["checkpoint"], model, rules, "vae3d", VAE)

    def hub(part: str) -> dict[str, Any]:
        """Where a part is a hub id, it is taken at the commit that the guide names."""
        return {"cache_dir": model.get("cache_dir"), "revision": model.get(f"{part}_pin")}

    text_encoder, tokenizer = load_text_encoder(places["text_encoder"], dtype, **hub("text_encoder"))
    text_encoder.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` without its types
    vae2d = places.get("vae2d")
    vae = OpenSora12VAE.from_pretrained(places["vae3d"], vae2d=vae2d, torch_dtype=dtype, **hub("vae3d")).to(device)
    vae.micro_batch_size = model.get("micro_batch_size", vae.micro_batch_size)
    vae.micro_frame_size = model.get("micro_frame_size", vae.micro_frame_size)
    if transformer is None:
        transformer = load_transformer(model, device)
    transformer.to(torch.device(device))  # type: ignore[arg-type]  # so does diffusers
    for part in (text_encoder, vae, transformer):
        part.eval().requires_grad_(False)
    scheduler = RFlowScheduler()
    scheduler.loops = model.get("loop", 1)
    return OpenSora12Pipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
    )


def load_transformer(model: Mapping[str, Any], device: str) -> OpenSora12Transformer:
    """The float transformer of a model section alone, in eval mode, without gradients."""
    transformer = OpenSora12Transformer.from_pretrained(
        model["checkpoint"], torch_dtype=DTYPES[model["dtype"]], **_hub(model)
    )
    return transformer.to(device).eval().requires_grad_(False)


def skeleton(model: Mapping[str, Any]) -> OpenSora12Transformer:
    """The transformer of a model section on the meta device: modules, shapes and dtype, no weights."""
    folder = locate(model["checkpoint"], **_hub(model))
    transformer = hollow(OpenSora12Transformer, read_config(folder), str(folder)).to(DTYPES[model["dtype"]])
    return transformer.eval().requires_grad_(False)


def apply_template(prompt: str, template: str) -> str:
    """`prompt` in a text with one {}; the model has no templates of its own."""
    return template.replace("{}", prompt)


def _hub(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"cache_dir": model.get("cache_dir"), "revision": model.get("revision")}
