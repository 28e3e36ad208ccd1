"""Read a diffusers-style checkpoint folder into a module, whole or not at all.

A model is built on the meta device and takes the very tensors that were read, so a checkpoint is in memory once. What
lacks a file, or holds tensors that do not fit its config, is refused with one CheckpointError that says all of it.
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from runner.model import object_file

WEIGHTS_STEM = "diffusion_pytorch_model"
LISTED = 12  # tensors named per kind of misfit before the rest is only counted
WITHOUT_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "disable_mmap")  # loading here is already as they ask

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound="PretrainedModel")


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it stands; the message says where, what and why."""


class PretrainedModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # the two disagree about config_name
    """A diffusers model whose from_pretrained refuses a checkpoint that does not fit, and leaves nothing at random."""

    unsaved: tuple[str, ...] = ()  # parts of names that a checkpoint may hold though the model has no place for them

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the keywords that diffusers hides in **kwargs, spelled out
        cls: type[P],
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> P:
        """The model of a local folder or hub id `owner/repository[/folder]`, in `torch_dtype` (float32) and eval mode.

        Other options that a diffusers pipeline passes along are accepted while they are off. Raises CheckpointError if
        the folder lacks something or its tensors do not fit its config, TypeError for an option that is on.
        """
        cls.refuse(options)
        folder = locate(
            pretrained_model_name_or_path,
            subfolder,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=bool(local_files_only),
        )
        config = read_config(folder)
        state = cls.read_state(folder, torch_dtype or torch.float32, variant)
        return build(cls, config, state, str(folder), cls.unsaved)

    @classmethod
    def refuse(cls, options: Mapping[str, Any]) -> None:
        """Raise TypeError for options of from_pretrained that are on and not known here."""
        if asked := [key for key, value in options.items() if value not in (None, False) and key not in WITHOUT_EFFECT]:
            raise TypeError(f"{cls.__name__}.from_pretrained knows no {', '.join(asked)}")

    @classmethod
    def read_state(cls, folder: Path, dtype: torch.dtype, variant: str | None) -> dict[str, Tensor]:
        """The tensors of `folder` under the names of this model."""
        return read_safetensors(folder, dtype, variant=variant)


def locate(
    name: str | Path,
    subfolder: str | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Folder of a checkpoint: `name` is a local folder, or a hub id `owner/repository[/folder]` that is downloaded.

    Raises CheckpointError if there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder / (subfolder or "")
        if not folder.is_dir():
            raise CheckpointError(f"there is no folder {folder}")
        return folder
    parts = str(name).split("/")
    if len(parts) < 2 or not all(part.strip(".~") for part in parts):
        raise CheckpointError(f"there is no folder {folder}")

    from huggingface_hub import snapshot_download

    inner = "/".join([*parts[2:], *filter(None, [subfolder])])
    files = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.ckpt", "*.pt", "*.pth")
    try:
        snapshot = snapshot_download(
            "/".join(parts[:2]),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=[f"{inner}/{file}" if inner else file for file in files],
        )
    except Exception as error:  # the hub client raises a dozen kinds, from OSError to its own
        raise CheckpointError(f"{name} is no folder here, and as a hub id it cannot be read: {error}") from error
    return locate(snapshot, inner)


def beside(checkpoint: str, model: Mapping[str, Any], rules: Any, vae: str, on_hub: str) -> dict[str, str]:
    """Folder or hub id of each part beside the transformer `checkpoint`, itself a folder or hub id.

    `rules` are the room's; the autoencoder is the part `vae`, and `on_hub` is where it is if the transformer is there.

    Raises CheckpointError where the folder is none, or holds no such transformer, or has no autoencoder.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or "/" not in checkpoint:
            raise CheckpointError(
                f"there is no folder {folder}; expected the transformer's config.json and weights there"
            )
        return {vae: on_hub, **rules.components(model, None)}
    if faults := list(rules.checkpoint_faults(folder)):
        raise CheckpointError("; ".join(faults))
    places: dict[str, str] = rules.components(model, folder)
    if vae not in places:
        raise CheckpointError(f"there is no autoencoder: neither {folder} nor {folder.parent} has a {vae}/config.json")
    return places


def read_config(folder: str | Path) -> dict[str, Any]:
    """The keys of `folder`/config.json. Raises CheckpointError if there is none or it is no JSON object."""
    path = _existing(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json")
    return _read_json(path)


def read_any(folder: Path, dtype: torch.dtype | None = None, *, variant: str | None = None) -> dict[str, Tensor]:
    """All tensors of `folder`, of whichever kind of file it has: safetensors under diffusers' name or transformers'
    (whole or in shards), else a single .pt or .pth.

    Raises CheckpointError as read_safetensors and read_ckpt do, and if there are several of the latter.
    """
    stems = (WEIGHTS_STEM, "model")
    for stem in stems:
        if any((folder / name).is_file() for name in _weight_names(stem, variant)):
            return read_safetensors(folder, dtype, variant=variant, stem=stem)
    pickles = sorted([*folder.glob("*.pt"), *folder.glob("*.pth")])
    if len(pickles) > 1:
        raise CheckpointError(f"{folder} holds {len(pickles)} .pt or .pth files, one of which must be chosen")
    if not pickles:
        names = [name for stem in stems for name in _weight_names(stem, variant)]
        raise CheckpointError(f"{folder} has no weights: none of {', '.join(names)}, and no .pt or .pth")
    return read_ckpt(pickles[0], dtype)


def _weight_names(stem: str, variant: str | None) -> tuple[str, str]:
    """The file of all weights, and the index of shards."""
    suffix = f".{variant}" if variant else ""
    return f"{stem}{suffix}.safetensors", f"{stem}.safetensors.index{suffix}.json"


def read_safetensors(
    folder: str | Path, dtype: torch.dtype | None = None, *, variant: str | None = None, stem: str = WEIGHTS_STEM
) -> dict[str, Tensor]:
    """All tensors of `folder`: one diffusion_pytorch_model[.variant].safetensors, or shards with an index.json.

    `stem` is what the files are called instead of diffusion_pytorch_model.

    Floating-point tensors are cast to `dtype` one at a time; None keeps what is stored. Raises CheckpointError if
    weights are missing, cut short, or not those that the index promises.
    """
    folder = _existing(folder)
    whole, index = (folder / name for name in _weight_names(stem, variant))
    if whole.is_file():
        return _read_file(whole, dtype)
    if not index.is_file():
        raise CheckpointError(f"{folder} has no weights: neither {whole.name} nor {index.name}")
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise CheckpointError(f"{index} has no weight_map")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        state |= _read_file(folder / shard, dtype)
    if absent := sorted(shards.keys() - state.keys()):
        raise CheckpointError(f"{index} lists tensors that its shards do not hold: {_some(absent)}")
    return state


def read_ckpt(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The averaged weights of a training checkpoint if it has some (`ema_state_dict`), else those of its generator.

    Nothing in the file is executed. Raises CheckpointError if it cannot be read so.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file raises whatever its bytes happen to spell
        raise CheckpointError(f"{path} cannot be read as tensors alone, and code is not run: {error}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds no dictionary")
    if ema := content.get("ema_state_dict"):
        state = {name.removeprefix("module."): tensor for name, tensor in ema.items()}
    else:
        state = content.get("state_dict", content)
        state = state.get("gen_model", state)
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path} holds no tensor under {', '.join(map(str, strange[:8]))}")
    return {name: _cast(tensor, dtype) for name, tensor in state.items()}


def hollow(cls: type[M], config: Mapping[str, Any], where: str) -> M:
    """`cls` on the meta device, made from those keys of `config` that its __init__ knows.

    Everything else that a training run left in the config is ignored. Raises CheckpointError, naming `where`, if the
    config is none of `cls`.
    """
    known = inspect.signature(cls.__init__).parameters
    try:
        with torch.device("meta"):
            return cls(**{key: value for key, value in config.items() if key in known and key != "self"})
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"the config of {where} is no {cls.__name__}: {error}") from error


def build(
    cls: type[M], config: Mapping[str, Any], state: Mapping[str, Tensor], where: str, ignore: Iterable[str] = ()
) -> M:
    """`cls` made from `config` (see hollow), holding the tensors of `state` (see load_state), in eval mode."""
    module = hollow(cls, config, where)
    load_state(module, state, where, ignore)
    return module.eval()


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str, ignore: Iterable[str] = ()) -> None:
    """Make `module` (best built on the meta device) hold the very tensors of `state`, without a copy.

    Names that hold one of `ignore` may be in `state` though the module has no place for them. Raises CheckpointError
    that names `where` and the missing, unexpected and misshapen tensors, and leaves the module as it was; RuntimeError
    if the module has unsaved buffers on the meta device, which nothing here could fill.
    """
    expected = module.state_dict()
    ignore = tuple(ignore)
    extra = [name for name in state if name not in expected and not any(part in name for part in ignore)]
    missing = [name for name in expected if name not in state]
    misfits = [name for name, tensor in expected.items() if name in state and not _fits(state[name], tensor)]
    complaints = [
        f"{len(names)} {kind}: {_some(lines)}"
        for kind, names, lines in (
            ("missing", missing, [f"{name} {_form(expected[name])}" for name in missing]),
            ("unexpected", extra, [f"{name} {_form(state[name])}" for name in extra]),
            ("misshapen", misfits, [f"{name} {_form(state[name])}, not {_form(expected[name])}" for name in misfits]),
        )
        if names
    ]
    if complaints:
        raise CheckpointError(
            f"the tensors of {where} do not fit its config ({type(module).__name__}):\n  " + "\n  ".join(complaints)
        )
    module.load_state_dict({name: state[name] for name in expected}, assign=True)
    if hollow := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise RuntimeError(f"{type(module).__name__} has unsaved buffers on the meta device: {_some(hollow)}")


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return object_file.read(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _read_file(path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: _cast(file.get_tensor(name), dtype) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _fits(tensor: Tensor, expected: Tensor) -> bool:
    return tensor.shape == expected.shape and tensor.is_floating_point() == expected.is_floating_point()


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"


def _some(lines: list[str]) -> str:
    rest = len(lines) - LISTED
    return "; ".join(lines[:LISTED]) + (f"; and {rest} more" if rest > 0 else "")
