"""A folder that only looks like a pipeline, for what reads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def folder(root: Path, pipeline: str, solver: str = "FlowMatchEulerDiscreteScheduler", **parts: Any) -> Path:
    """A folder that looks like one of `pipeline`."""
    parts = {"transformer": ["diffusers", "FluxTransformer2DModel"], "scheduler": ["diffusers", solver], **parts}
    (root / "transformer").mkdir(parents=True)
    (root / "scheduler").mkdir()
    (root / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **parts}))
    (root / "transformer" / "config.json").write_text("{}")
    (root / "transformer" / "diffusion_pytorch_model.safetensors").touch()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": solver}))
    return root
