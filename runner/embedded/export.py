"""Write trained parts in the released layout: transformer, `vae/`, `text_encoder/` and `defaults.yaml`, in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from runner.embedded.text import build_tokenizer, save_tokenizer
from runner.embedded.train_transformer import TextToVideo
from runner.model.osp12.vae import OSP12VAE

LIMIT = 16_000_000  # bytes of the whole folder
WEIGHTS = "diffusion_pytorch_model.safetensors"
DEFAULTS = """\
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
  template: "{}"
  negative_prompt: ""
  clean_caption: true
  enable_tiling: false
sampler:
  num_sampling_steps: 30
  guidance_scale: 4.0
sample:
  judge: world
"""


def export(folder: Path, vae: OSP12VAE, model: TextToVideo) -> int:
    """Write the checkpoint; its size in bytes. ValueError when the folder exceeds 16,000,000 bytes."""
    for part in (folder, folder / "vae", folder / "text_encoder"):
        part.mkdir(parents=True, exist_ok=True)
    for part, module, name in ((folder, model.transformer, "OpenSoraT2V"), (folder / "vae", vae, "CausalVAEModel")):
        given = {key: value for key, value in module.config.items() if not key.startswith("_")}
        _write_json(part / "config.json", {"_class_name": name, **given})
        _write_weights(part / WEIGHTS, module)
    encoder = folder / "text_encoder"
    config = {key: value for key, value in model.text_encoder.config.to_diff_dict().items() if key != "dtype"}
    _write_json(encoder / "config.json", {**config, "architectures": ["T5EncoderModel"]})
    _write_weights(encoder / "model.safetensors", model.text_encoder)
    save_tokenizer(build_tokenizer(), encoder)
    (folder / "defaults.yaml").write_text(DEFAULTS, encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{folder} holds {size} bytes; at most {LIMIT} ship with the project")
    return size


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, module: nn.Module) -> None:
    tensors = {name: each.detach().cpu().to(torch.bfloat16).contiguous() for name, each in module.state_dict().items()}
    if "encoder.embed_tokens.weight" in tensors:
        tensors.pop("encoder.embed_tokens.weight")  # tied to `shared`
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
