"""msModelSlim's own cache search on a pipeline of ours.

The package comes from another environment, behind everything that is installed here; what it imports beside that and
this environment has not (imageio, cv2) is stood in for by imageio-ffmpeg, which imageio itself writes films with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch

from runner.generation.generate import generate
from runner.hardware import open_device


class Video:
    """As much of cv2.VideoCapture as reading a film takes."""

    def __init__(self, path: str) -> None:
        frames = imageio_ffmpeg.read_frames(path)
        width, height = next(frames)["size"]
        self._frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3)[..., ::-1] for frame in frames]

    def isOpened(self) -> bool:  # noqa: N802  # its name there
        return True

    def read(self) -> tuple[bool, Any]:
        return (True, self._frames.pop(0)) if self._frames else (False, None)

    def release(self) -> None: ...


def mimwrite(path: str, frames: Any, fps: int, quality: int, codec: str, output_params: list[str]) -> None:
    """As imageio writes a film: by imageio-ffmpeg, from uint8 frames [T,H,W,3]."""
    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(
        path, (width, height), fps=fps, quality=quality, codec=codec, output_params=output_params, macro_block_size=16
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def searched(
    python: str, pipeline: Any, config: dict[str, Any], prompts: Sequence[tuple[str, int]], steps: int, ratio: float
) -> tuple[dict[str, int], int, float]:
    """Its answer, the forwards that it took (a guided pair is one; all prompts go in one batch), and the seconds."""
    say = "import msmodelslim, os; print(os.path.dirname(os.path.dirname(msmodelslim.__file__)))"
    place = subprocess.run([python, "-c", say], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    if place not in sys.path:
        sys.path.append(place)
    for name, members in {"imageio": {"mimwrite": mimwrite}, "cv2": {"VideoCapture": Video}}.items():
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(members)
    from msmodelslim.pytorch.multi_modal.dit_cache import DitCacheAdaptor, DitCacheSearchConfig

    counted, began = [0], time.perf_counter()
    blocks = list(pipeline.transformer.transformer_blocks)
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    adaptor = DitCacheAdaptor(pipeline, DitCacheSearchConfig(cache_ratio=ratio, num_sampling_steps=steps))

    def videos(_: Any) -> list[np.ndarray]:
        DitCacheAdaptor.set_timestep_idx(0)
        texts, seeds = map(list, zip(*prompts, strict=True))
        return [frames.numpy() for frames in generate(pipeline, config, texts, seeds, open_device("cpu")).frames]

    here = Path.cwd()
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            os.chdir(folder)  # its films go to where it is run
            found = dict(adaptor.search(videos, prompts_num=len(prompts)))
    finally:  # it replaces the blocks' forward and offers no way back
        os.chdir(here)
        hook.remove()
        for block in blocks:
            vars(block).pop("forward", None)
    return found, counted[0] * len(prompts), time.perf_counter() - began
