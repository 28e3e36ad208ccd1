"""A released folder of Stable Diffusion 3 as a pipeline that is ready to sample."""

from collections.abc import Mapping
from typing import Any

from .. import diffusers
from .rules import left_out


def load(model: Mapping[str, Any], sample_method: str, device: str, transformer: Any = None) -> Any:
    """The pipeline of a model section (the keys of conf/model/sd3.yaml), see runner.model.diffusers.loading.load."""
    return diffusers.load(model, sample_method, device, transformer, without=left_out(model))
