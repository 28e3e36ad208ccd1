import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from runner.metrics import change, flicker, psnr, relative_error, ssim


def clip(seed: int, shape: tuple[int, ...] = (3, 40, 32, 3)) -> np.ndarray:
    """Smooth shapes with noise on top: structure for SSIM, and no frame like the next."""
    random = np.random.default_rng(seed)
    frames, height, width, channels = shape
    t, y, x, c = np.ogrid[:frames, :height, :width, :channels]
    waves = 128 + 90 * np.sin(x / 5 + t) * np.cos(y / 7 - c)
    return (waves + random.normal(0, 20, shape)).clip(0, 255).astype(np.uint8)


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """scikit-image's index of two frames, set up as the paper has it."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(x, y, channel_axis=-1, data_range=255, **options))


def test_ssim_is_that_of_scikit_image() -> None:
    a, b = clip(0), clip(1)
    expected = [reference_ssim(x, y) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b) == pytest.approx(np.mean(expected), abs=1e-4)
    assert ssim(torch.from_numpy(a), torch.from_numpy(b)) == ssim(a, b)
    assert ssim(a, a) == 1.0


def test_ssim_on_flat_frames_is_not_lost_to_cancellation() -> None:
    bright, brighter = np.full((1, 16, 16, 3), 254, np.uint8), np.full((1, 16, 16, 3), 255, np.uint8)
    expected = reference_ssim(bright[0], brighter[0])
    assert ssim(bright, brighter) == pytest.approx(expected, abs=1e-6)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11x11.*10x32"):
        ssim(clip(0, (2, 10, 32, 3)), clip(1, (2, 10, 32, 3)))


def test_psnr_pools_the_error_of_the_clip() -> None:
    a, b = clip(0), clip(1)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    assert psnr(a, a) == math.inf
    one_level = np.zeros((1, 8, 8, 3), np.uint8)
    assert psnr(one_level, one_level + 1) == pytest.approx(20 * math.log10(255))


def test_flicker_ignores_what_both_clips_share() -> None:
    still = np.full((4, 8, 8, 3), 100, np.uint8)
    blinking = still.copy()
    blinking[1::2] += 10
    assert flicker(still, blinking) == pytest.approx(10.0)
    assert flicker(still, still + 7) == 0.0
    assert flicker(blinking, blinking + 7) == 0.0
    assert change(still) == 0.0
    assert change(blinking) == pytest.approx(10.0)


def test_flicker_sees_changes_of_equal_size_in_opposite_directions() -> None:
    up = np.array([100, 110], np.uint8).reshape(2, 1, 1, 1)
    down = np.array([110, 100], np.uint8).reshape(2, 1, 1, 1)
    assert change(up) == change(down) == 10.0
    assert flicker(up, down) == 20.0


def test_a_single_frame_is_a_clip() -> None:
    a, b = clip(0, (1, 16, 16, 3)), clip(1, (1, 16, 16, 3))
    assert (flicker(a, b), change(a)) == (0.0, 0.0)
    assert math.isfinite(psnr(a, b)) and 0 < ssim(a, b) < 1


def test_clips_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[3, 40, 32, 3\] and \[2, 40, 32, 3\]"):
        psnr(clip(0), clip(0)[:2])
    with pytest.raises(ValueError, match="uint8"):
        psnr(clip(0).astype(np.float32), clip(0))
    with pytest.raises(ValueError, match="not empty"):
        change(clip(0)[:0])


def test_relative_error() -> None:
    reference = torch.tensor([[3.0, 4.0]])
    assert relative_error(reference * 1.1, reference) == pytest.approx(0.1)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf
    assert relative_error(reference.bfloat16(), reference.bfloat16()) == 0.0
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        relative_error(torch.ones(2), torch.ones(3))
