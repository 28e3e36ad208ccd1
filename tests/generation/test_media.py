from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from runner.generation.media import contact_sheet, read_clip, save_clip, save_mp4, save_png


def clip(frames: int = 5, height: int = 48, width: int = 64, color: tuple[int, int, int] = (220, 30, 40)) -> np.ndarray:
    """A colored bar that moves over gray, so that every frame is told from the others."""
    images = np.full((frames, height, width, 3), 235, np.uint8)
    for t in range(frames):
        images[t, :, 8 * t : 8 * t + 16] = color
    return images


def read_mp4(path: Path) -> tuple[dict, np.ndarray]:
    stream = imageio_ffmpeg.read_frames(str(path))
    about = next(stream)
    width, height = about["size"]
    return about, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in stream])


def test_mp4_gives_back_its_frames(tmp_path: Path) -> None:
    frames = clip()
    save_mp4(frames, tmp_path / "a.mp4", fps=8)
    about, seen = read_mp4(tmp_path / "a.mp4")
    assert about["codec"] == "h264" and about["pix_fmt"].startswith("yuv420p(tv, bt709")
    assert about["fps"] == 8 and seen.shape == frames.shape
    middle_of_bar = seen[:, 24, [8 * t + 8 for t in range(5)]][range(5), range(5)]
    assert np.abs(middle_of_bar.astype(int) - (220, 30, 40)).max() <= 6
    assert np.abs(seen.astype(int) - frames).mean() < 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"], "no draft is left behind"


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    save_mp4(clip(), tmp_path / "a.mp4", fps=8)
    save_mp4(clip(), tmp_path / "b.mp4", fps=8)
    contact_sheet([("a", clip())], tmp_path / "a.png")
    contact_sheet([("a", clip())], tmp_path / "b.png")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    save_mp4(clip(color=(30, 40, 220)), tmp_path / "b.mp4", fps=8)
    assert (tmp_path / "a.mp4").read_bytes() != (tmp_path / "b.mp4").read_bytes()


def test_mp4_starts_with_its_index(tmp_path: Path) -> None:
    """The moov box before the media data, so that a browser shows a frame before it has the last byte."""
    save_mp4(clip(), tmp_path / "a.mp4", fps=24)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_grow_by_one_pixel(tmp_path: Path) -> None:
    frames = clip(3, 47, 63)
    save_mp4(frames, tmp_path / "odd.mp4", fps=23.976)
    about, seen = read_mp4(tmp_path / "odd.mp4")
    assert seen.shape == (3, 48, 64, 3)
    assert np.abs(seen[:, :47, :63].astype(int) - frames).mean() < 2
    assert np.abs(seen[:, 47, 40:].astype(int) - 235).max() < 6, "the last row repeats, no black edge"


def test_a_clip_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    assert save_clip(clip(1), tmp_path / "prompt-0.5", fps=8) == tmp_path / "prompt-0.5.png"
    assert (np.asarray(Image.open(tmp_path / "prompt-0.5.png")) == clip(1)[0]).all()
    assert save_clip(clip(2), tmp_path / "prompt-0.5", fps=8) == tmp_path / "prompt-0.5.mp4"
    assert read_mp4(tmp_path / "prompt-0.5.mp4")[1].shape[0] == 2
    save_mp4(clip(1), tmp_path / "one.mp4", fps=8)
    assert read_mp4(tmp_path / "one.mp4")[1].shape[0] == 1


def test_frames_are_checked(tmp_path: Path) -> None:
    for wrong in (clip().astype(np.float32), clip()[0], clip()[:0], clip()[..., :1]):
        with pytest.raises(ValueError, match=r"uint8 \[T, H, W, 3\]"):
            save_mp4(wrong, tmp_path / "a.mp4", fps=8)
    with pytest.raises(ValueError, match="frames per second"):
        save_mp4(clip(), tmp_path / "a.mp4", fps=0)
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([], tmp_path / "a.png")


def test_without_ffmpeg_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(RuntimeError, match=r"IMAGEIO_FFMPEG_EXE.*sample\.save=false"):
        save_mp4(clip(), tmp_path / "a.mp4", fps=8)


def test_a_failing_ffmpeg_is_quoted_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat > /dev/null\necho 'Unknown encoder libx264' >&2\nexit 8\n")
    broken.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(broken))
    with pytest.raises(RuntimeError, match=r"status 8\): Unknown encoder libx264"):
        save_mp4(clip(), tmp_path / "a.mp4", fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_contact_sheet_shows_every_row(tmp_path: Path) -> None:
    red, blue = clip(), clip(color=(30, 40, 220))
    contact_sheet(
        iter([("a red bar", red), ("", blue), ("a single frame", red[:1])]), tmp_path / "sheet.png", columns=4
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    reds = (np.abs(sheet - (220, 30, 40)).sum(-1) == 0).sum()
    blues = (np.abs(sheet - (30, 40, 220)).sum(-1) == 0).sum()
    bar = 48 * 16 * 4  # 64x48 is magnified twice, without smoothing
    assert (reds, blues) == (5 * bar, 4 * bar)
    assert sheet.shape[1] == 2 * 16 + 4 * 128 + 3 * 4


def test_contact_sheet_picks_the_first_and_last_frame_and_shrinks_large_ones(tmp_path: Path) -> None:
    frames = np.zeros((9, 360, 640, 3), np.uint8)
    frames[0], frames[-1] = 100, 200
    contact_sheet([("x" * 500, frames)], tmp_path / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 2 * 16 + 3 * 320 + 2 * 4
    row = sheet[-100, :, 0]
    assert row[16 + 160] == 100 and row[16 + 2 * 324 + 160] == 200


def test_png(tmp_path: Path) -> None:
    save_png(clip()[2], tmp_path / "frame.png")
    assert (np.asarray(Image.open(tmp_path / "frame.png")) == clip()[2]).all()


def test_a_video_is_read_back_scaled_and_cropped(tmp_path):
    left, right = np.full((5, 32, 32, 3), (200, 30, 30)), np.full((5, 32, 32, 3), (20, 30, 190))
    path = tmp_path / "clip.mp4"
    save_mp4(np.concatenate([left, right], axis=2).astype(np.uint8), path, fps=8)
    clip = read_clip(path, 4, 16, 32)
    assert clip.shape == (4, 16, 32, 3) and clip.dtype == np.uint8
    assert abs(clip[:, :, :12].mean((0, 1, 2)) - (200, 30, 30)).max() < 8
    assert abs(clip[:, :, -12:].mean((0, 1, 2)) - (20, 30, 190)).max() < 8
    assert abs(read_clip(path, 4, 16, 16)[:, :, :6].mean((0, 1, 2)) - (200, 30, 30)).max() < 8  # the middle of it
    with pytest.raises(ValueError, match="has 5 frames; 6 are needed"):
        read_clip(path, 6, 16, 32)
    (tmp_path / "no.mp4").write_text("no video")
    with pytest.raises(RuntimeError, match="could not read"):
        read_clip(tmp_path / "no.mp4", 1, 16, 16)
