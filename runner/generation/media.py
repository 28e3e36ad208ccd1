"""Clips as files to look at: H.264 for any browser, PNG, a contact sheet. The same frames give the same bytes."""

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]

THUMBNAIL_SIDES = (128, 320)  # pixels: smaller frames are magnified by whole factors, larger ones shrunk
MARGIN, GAP, LABEL_SIZE = 16, 4, 15
BACKGROUND, INK = (24, 25, 28), (222, 224, 228)

# Tiny clips lose more to compression than to quantization of the model, so the rate is generous: visually lossless.
QUALITY = "10"
# What makes bytes vary is fixed: threads split frames in a different way, muxers write dates and versions, fast scalers
# round by instruction set. The BT.709 matrix is applied and declared: players would guess one from the picture's size.
FILTERS = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact,format=yuv420p,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
ENCODING = (
    *("-vf", FILTERS, "-c:v", "libx264", "-preset", "medium", "-crf", QUALITY, "-threads", "1"),
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
    *("-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart", "-f", "mp4"),
)


def save_clip(frames: Any, stem: str | Path, fps: float) -> Path:
    """Writes frames uint8 [T, H, W, 3] to STEM.mp4, or to STEM.png if there is only one, and returns the path."""
    clip = _clip(frames)
    path = Path(f"{stem}.png" if len(clip) == 1 else f"{stem}.mp4")
    if len(clip) == 1:
        save_png(clip[0], path)
    else:
        save_mp4(clip, path, fps)
    return path


def save_mp4(frames: Any, path: str | Path, fps: float) -> None:
    """Writes frames uint8 [T, H, W, 3] as H.264 (yuv420p) at `fps`; odd sides grow by one repeated pixel, as the
    format asks.

    Whole or not at all: the file appears under its name when it is complete. Raises ValueError for frames that are not
    a clip and RuntimeError, with ffmpeg's last lines, where there is no ffmpeg or it fails.
    """
    clip = _clip(frames)
    path = Path(path)
    if not fps > 0:
        raise ValueError(f"a video needs a positive number of frames per second, not {fps}")
    _, height, width, _ = clip.shape
    clip = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{clip.shape[2]}x{clip.shape[1]}")
    command = [_ffmpeg(), "-v", "error", "-y", *source, "-framerate", str(fps), "-i", "-", *ENCODING, str(draft)]
    try:
        done = subprocess.run(command, input=np.ascontiguousarray(clip).reshape(-1).data, capture_output=True)
        if done.returncode != 0:
            last_lines = "\n".join(done.stderr.decode(errors="replace").strip().splitlines()[-3:])
            raise RuntimeError(f"ffmpeg could not write {path} (status {done.returncode}): {last_lines}")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_clip(path: str | Path, frames: int, height: int, width: int) -> Frames:
    """The first frames of a video, scaled to cover height x width and cropped evenly: uint8 [frames, height, width, 3].

    Raises ValueError where it has fewer frames, RuntimeError, with ffmpeg's last lines, where it cannot be read.
    """
    scaled = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=bicubic,crop={width}:{height}"
    output = ("-frames:v", str(frames), "-vf", scaled, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    command = [_ffmpeg(), "-v", "error", "-i", str(path), *output]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"ffmpeg could not read {path}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    size = height * width * 3
    if len(done.stdout) < frames * size:
        raise ValueError(f"{path} has {len(done.stdout) // size} frames; {frames} are needed")
    return np.frombuffer(done.stdout, np.uint8).reshape(frames, height, width, 3).copy()


def save_png(frame: Any, path: str | Path) -> None:
    """Writes one frame uint8 [H, W, 3]."""
    Image.fromarray(_clip(np.asarray(frame)[None])[0]).save(path, format="PNG", compress_level=6)


def contact_sheet(rows: Iterable[tuple[str, Any]], path: str | Path, columns: int = 6) -> None:
    """Writes one PNG with a strip of up to `columns` frames, evenly picked from first to last, for each (label,
    frames) row.

    The label stands above its strip; a row with an empty label joins the strip above it, so that a float clip and its
    quantized twin sit frame under frame. `rows` may be a generator: only thumbnails are kept. Raises ValueError when
    there are no rows.
    """
    strips = [(label, _strip(_clip(frames), columns)) for label, frames in rows]
    if not strips:
        raise ValueError("a contact sheet needs at least one row")
    font = ImageFont.load_default(LABEL_SIZE)
    line = LABEL_SIZE + 2 * GAP
    height = 2 * MARGIN + sum(strip.height + (line + MARGIN if label else GAP) for label, strip in strips) - MARGIN
    width = 2 * MARGIN + max(strip.width for _, strip in strips)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for position, (label, strip) in enumerate(strips):
        if label:
            y += MARGIN if position else 0
            draw.text((MARGIN, y), _shorten(label, font, width - 2 * MARGIN), font=font, fill=INK)
            y += line
        else:
            y += GAP
        sheet.paste(strip, (MARGIN, y))
        y += strip.height
    sheet.save(path, format="PNG", compress_level=6)


def _clip(frames: Any) -> Frames:
    clip: Frames = np.asarray(frames)
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or clip.size == 0:
        raise ValueError(f"a clip is uint8 [T, H, W, 3] and not empty; this one is {clip.dtype} {list(clip.shape)}")
    return clip


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        executable: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise RuntimeError(
            "no ffmpeg for mp4 files: imageio-ffmpeg has none for this platform, none is on the PATH, and "
            "IMAGEIO_FFMPEG_EXE does not name one; set it, or run with sample.save=false"
        ) from error
    return executable


def _strip(clip: Frames, columns: int) -> Image.Image:
    """Evenly picked frames side by side, magnified by a whole factor without smoothing, or shrunk with it."""
    count = min(columns, len(clip))
    picked = clip[np.linspace(0, len(clip) - 1, count).round().astype(int)]
    height, width = clip.shape[1:3]
    smallest, largest = THUMBNAIL_SIDES
    if max(height, width) > largest:
        scale, how = largest / max(height, width), Image.Resampling.LANCZOS
    else:
        scale, how = max(1, smallest // max(height, width)), Image.Resampling.NEAREST
    size = max(1, round(width * scale)), max(1, round(height * scale))
    strip = Image.new("RGB", (count * (size[0] + GAP) - GAP, size[1]), BACKGROUND)
    for column, frame in enumerate(picked):
        strip.paste(Image.fromarray(frame).resize(size, how), (column * (size[0] + GAP), 0))
    return strip


def _shorten(label: str, font: Any, width: int) -> str:
    """The label on one line, cut at a word with an ellipsis where it is longer than `width` pixels."""
    text = " ".join(label.split())
    if font.getlength(text) <= width:
        return text
    words: Sequence[str] = text.split(" ")
    while len(words) > 1 and font.getlength(" ".join(words) + " …") > width:
        words = words[:-1]
    return " ".join(words) + " …"
