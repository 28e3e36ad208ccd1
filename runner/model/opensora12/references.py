"""Images and videos that Open-Sora 1.2 is to begin with, go on from or end with, as tensors of the video's size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")

Reference = str | Path | Tensor


def read_references(references: str | Sequence[Reference] | None, height: int, width: int) -> list[Tensor]:
    """Each reference as [3, T, height, width] in [-1, 1], scaled to fill the frame and cut about its middle.

    references: paths joined by ";" as in the released scripts, or a list of paths and tensors [3, T, H, W] or [3, H, W]
    in [-1, 1]. An image is one frame, of a video all frames are read. Nothing is downloaded. Raises ValueError with the
    name of what is missing or cannot be read.
    """
    if references is None:
        return []
    single = [part for part in references.split(";") if part.strip()] if isinstance(references, str) else references
    return [_read(reference, height, width) for reference in single]


def _read(reference: Reference, height: int, width: int) -> Tensor:
    if isinstance(reference, Tensor):
        frames = reference[:, None] if reference.ndim == 3 else reference
        if frames.ndim != 4 or frames.shape[0] != 3 or not frames.shape[1]:
            raise ValueError(f"a reference is {list(reference.shape)}; expected [3, T, H, W] or [3, H, W]")
        if frames.abs().max() > 1:
            raise ValueError(f"a reference reaches {float(frames.abs().max()):.3g}; its values must lie in [-1, 1]")
        return _fill(frames.transpose(0, 1).float(), height, width).transpose(0, 1)
    if str(reference).strip().startswith(("http://", "https://")):
        raise ValueError(f"reference {reference}: nothing is fetched from a network here; give a file")
    path = Path(str(reference).strip()).expanduser()
    if not path.is_file():
        raise ValueError(f"reference {path}: there is no such file")
    if path.suffix.lower() in VIDEOS:
        frames = _video(path).permute(0, 3, 1, 2).float() / 127.5 - 1
        return _fill(frames, height, width).transpose(0, 1)
    return _image(path, height, width)


def _geometry(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int, int, int]:
    """Sides after scaling, and the upper left corner of the part that is kept."""
    if target_height / height > target_width / width:
        scaled = round(width * target_height / height)
        return target_height, scaled, 0, round((scaled - target_width) / 2)
    scaled = round(height * target_width / width)
    return scaled, target_width, round((scaled - target_height) / 2), 0


def _image(path: Path, height: int, width: int) -> Tensor:
    """One frame [3, 1, height, width], scaled with a bicubic filter."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow raises what its decoders happen to raise
        raise ValueError(f"reference {path} cannot be read as an image: {error}") from error
    rows, columns, top, left = _geometry(image.height, image.width, height, width)
    image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image)[top : top + height, left : left + width].copy())
    return (pixels.permute(2, 0, 1).float() / 127.5 - 1)[:, None]


def _fill(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames [T, 3, H, W] scaled bilinearly and cut."""
    rows, columns, top, left = _geometry(frames.shape[2], frames.shape[3], height, width)
    if (rows, columns) != tuple(frames.shape[2:]):
        frames = F.interpolate(frames, (rows, columns), mode="bilinear", align_corners=False)
    return frames[:, :, top : top + height, left : left + width]


def _video(path: Path) -> Tensor:
    """All frames, uint8 [T, H, W, 3]."""
    import imageio_ffmpeg

    try:
        reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
        width, height = next(reader)["size"]
        frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    except Exception as error:  # ffmpeg's words, in whatever imageio makes of its status
        raise ValueError(f"reference {path} cannot be read as a video: {error}") from error
    if not frames:
        raise ValueError(f"reference {path} has no frames")
    return torch.from_numpy(np.stack(frames))
