"""What several tests share: no hub, one thread, and a checkpoint small enough to run whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).parent / "data"

TINY_DEFAULTS = """\
model:
  {num_frames: 9, height: 32, width: 48, fps: 8, max_sequence_length: 48, template: plain, enable_tiling: false}
sampler: {num_sampling_steps: 3, guidance_scale: 4.0}
prompts: {text: [a red boat, a blue house], calibration: [a green tree]}
"""


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer folder in the released layout, VAE and text encoder beside it, with the test vectors' weights."""
    root = tmp_path_factory.mktemp("released")
    shutil.copytree(DATA / "osp12" / "dit_a" / "model_ema", root / "9x32p")
    shutil.copytree(DATA / "osp12" / "vae_a" / "vae", root / "vae")
    shutil.copytree(DATA / "osp12" / "text_encoder", root / "text_encoder")
    (root / "9x32p" / "defaults.yaml").write_text(TINY_DEFAULTS)
    return root / "9x32p"
