"""From the released layout to a pipeline that is ready to sample."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MT5EncoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from runner.sampler import make_scheduler

from ..checkpoint import CheckpointError, hollow, locate, read_config
from .pipeline import OSP12Pipeline
from .rules import checkpoint_faults, components
from .transformer import OSP12Transformer
from .vae import OSP12VAE

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TEXT_ENCODERS: dict[str, Any] = {"mt5": MT5EncoderModel, "t5": T5EncoderModel}  # by the model_type of their config.json


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
    dtype, checkpoint, cache_dir = DTYPES[model["dtype"]], _checkpoint(model), model.get("cache_dir")
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
    transformer = OSP12Transformer.from_pretrained(_checkpoint(model), torch_dtype=DTYPES[model["dtype"]], **options)
    return transformer.to(device).eval().requires_grad_(False)


def skeleton(model: Mapping[str, Any]) -> OSP12Transformer:
    """The transformer of a model section on the meta device: modules, shapes and dtype, no weights."""
    folder = locate(_checkpoint(model), revision=model.get("revision"), cache_dir=model.get("cache_dir"))
    transformer = hollow(OSP12Transformer, read_config(folder), str(folder)).to(DTYPES[model["dtype"]])
    return transformer.eval().requires_grad_(False)


def load_text_encoder(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder half of a T5 or mT5 and its tokenizer, of a folder or a hub id `owner/repository[/folder]`.

    Raises CheckpointError unless the place has the config.json of one, all weights of an encoder, and a tokenizer.
    """
    options: dict[str, Any] = {}
    if not Path(name).expanduser().is_dir():
        owner, repository, *inner = [*name.split("/"), ""] if name.count("/") else [name, ""]
        if not owner.strip(".~") or not repository:
            raise CheckpointError(f"there is no folder {name} with a text encoder")
        name = f"{owner}/{repository}"
        options = {"subfolder": "/".join(inner).strip("/"), "revision": revision, "cache_dir": cache_dir}
    elif not (Path(name).expanduser() / "config.json").is_file():
        raise CheckpointError(f"{name} is no text encoder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if config.model_type not in TEXT_ENCODERS:
            raise CheckpointError(
                f"{name} holds a {config.model_type!r}; the text encoder must be one of {', '.join(TEXT_ENCODERS)}"
            )
        key = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
        encoder, info = TEXT_ENCODERS[config.model_type].from_pretrained(
            name, config=config, output_loading_info=True, low_cpu_mem_usage=True, **{key: dtype}, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except CheckpointError:
        raise
    except Exception as error:  # a broken file raises anything from OSError to the reader's own kinds
        raise CheckpointError(
            f"the text encoder {name} cannot be read (expected config.json, the weights of an encoder, and "
            f"tokenizer.json or spiece.model): {error}"
        ) from error
    # transformers would go on with random tensors, or, in version 4, with some that have no storage
    if missing := sorted({*info["missing_keys"], *(name for name, p in encoder.named_parameters() if p.is_meta)}):
        raise CheckpointError(f"the text encoder {name} lacks {len(missing)} tensors: {', '.join(missing[:12])}")
    if len(tokenizer) - len(tokenizer.all_special_tokens) < 2:  # transformers 5 makes an empty one of no file
        raise CheckpointError(f"the text encoder {name} has no tokenizer: expected tokenizer.json or spiece.model")
    return encoder, tokenizer


def _checkpoint(model: Mapping[str, Any]) -> str:
    """The transformer's folder or hub id; "embedded" is the folder of the weights that ship with the project."""
    if model["checkpoint"] != "embedded":
        return str(model["checkpoint"])
    spec = find_spec("runner.embedded")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "weights")


def _places(model: Mapping[str, Any], checkpoint: str) -> dict[str, str]:
    """Folder or hub id of "vae" and "text_encoder"."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        if faults := list(checkpoint_faults(folder)):
            raise CheckpointError("; ".join(faults))
        places = components(model, folder)
        if "vae" not in places:
            raise CheckpointError(f"there is no VAE: neither {folder} nor {folder.parent} has a vae/config.json")
        return places
    if folder.is_absolute() or checkpoint.count("/") < 1:
        raise CheckpointError(f"there is no folder {folder}; expected the transformer's config.json and weights there")
    # On the hub the release has its VAE beside the transformers' folders.
    return {"vae": "/".join([*checkpoint.split("/")[:2], "vae"]), **components(model, None)}
