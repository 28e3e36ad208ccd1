"""Write trained parts in the released layout: transformer, `vae/`, `text_encoder/` and `defaults.yaml`, in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from runner.embedded.training.text import build_tokenizer, save_tokenizer, write_json
from runner.embedded.training.train_transformer import TextToVideo
from runner.model.osp12.vae import OSP12VAE

LIMIT = 16_000_000  # bytes of the whole folder
WEIGHTS = "diffusion_pytorch_model.safetensors"
# What the small models of clips want alike; each adds to it.
CLIPS = """\
# What this checkpoint wants where neither the command line nor the recipe says otherwise.
prompts:
  text:
    - a red circle moving left
    - a blue square growing
    - a yellow triangle moving up
    - a green cross standing still
  calibration:
    - a magenta circle moving right
    - a cyan square moving down
    - a red triangle standing still
    - a blue cross moving left
model:
  num_frames: 17
  height: 64
  width: 64
  fps: 8
  max_sequence_length: 16
"""
DEFAULTS = f"""{CLIPS}\
  template: "{{}}"
  negative_prompt: ""
  clean_caption: true
  enable_tiling: false
sampler:
  num_sampling_steps: 30
  guidance_scale: 2.0
sample:
  judge: world
"""


def export(folder: Path, vae: OSP12VAE, model: TextToVideo) -> int:
    """Write the checkpoint; its size in bytes. ValueError when the folder exceeds 16,000,000 bytes."""
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    for part, module, name in ((folder, model.transformer, "OpenSoraT2V"), (folder / "vae", vae, "CausalVAEModel")):
        given = {key: value for key, value in module.config.items() if not key.startswith("_")}
        write_json(part / "config.json", {"_class_name": name, **given})
        write_weights(part / WEIGHTS, module)
    export_t5(folder / "text_encoder", model.text_encoder)
    (folder / "defaults.yaml").write_text(DEFAULTS, encoding="utf-8")
    return size_of(folder)


def size_of(folder: Path) -> int:
    """Bytes of a checkpoint. ValueError where they are too many to ship."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{folder} holds {size} bytes; at most {LIMIT} ship with the project")
    return size


def export_t5(folder: Path, encoder: nn.Module) -> None:
    """Write a T5 encoder with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in encoder.config.to_diff_dict().items() if key != "dtype"}  # type: ignore
    write_json(folder / "config.json", {**config, "architectures": ["T5EncoderModel"]})
    write_weights(folder / "model.safetensors", encoder)
    save_tokenizer(build_tokenizer(), folder)


def write_weights(path: Path, module: nn.Module, whole: Iterable[str] = ()) -> None:
    """The module's tensors in bfloat16, those named in `whole` in float32."""
    tensors = {
        name: each.detach().cpu().to(torch.float32 if name in whole else torch.bfloat16).contiguous()
        for name, each in module.state_dict().items()
    }
    if "encoder.embed_tokens.weight" in tensors:
        tensors.pop("encoder.embed_tokens.weight")  # tied to `shared`
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
