"""What several tests share: no hub, one thread, and a checkpoint small enough to run whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell has its background jobs ignore Ctrl-C, and what they start inherits that; some tests type it.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parent / "data"
pytest_plugins = ["support.skipped_whole"]

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


OPENSORA12_DEFAULTS = """\
model: {num_frames: 17, height: 32, width: 48, fps: 8, max_sequence_length: 12}
sampler: {num_sampling_steps: 2, guidance_scale: 4.0}
prompts: {text: [a red boat, a blue house], calibration: [a green tree]}
"""
WORDS = "a red blue green boat house tree calm stormy sea beautiful waterfall aesthetic score motion : . 6 5".split()


@pytest.fixture(scope="session")
def tiny_opensora12(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer's folder of four in the released layout of Open-Sora 1.2, with the test vectors' weights."""
    root, source = tmp_path_factory.mktemp("opensora12"), DATA / "opensora12"
    names = {"stdit3": "OpenSora-STDiT-v3", "vae3d": "OpenSora-VAE-v1.2", "t5": "t5-v1_1-xxl"}
    for name, released in {**names, "vae2d": "pixart_sigma_sdxlvae_T5_diffusers"}.items():
        shutil.copytree(source / name, root / released)
    vocabulary = {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "decoder": None,
        "added_tokens": [{"id": i, "content": word, **special} for word, i in list(vocabulary.items())[:3]],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "single": end, "pair": [*end, *end],
                           "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
    (root / "t5-v1_1-xxl/tokenizer.json").write_text(json.dumps(tokenizer))
    (root / "t5-v1_1-xxl/tokenizer_config.json").write_text(json.dumps({**tokens, "unk_token": "<unk>"}))
    (root / "OpenSora-STDiT-v3/defaults.yaml").write_text(OPENSORA12_DEFAULTS)
    return root / "OpenSora-STDiT-v3"


@pytest.fixture(scope="session")
def reference_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image for recipes that want one to begin with."""
    from PIL import Image

    path = tmp_path_factory.mktemp("reference") / "first.png"
    Image.new("RGB", (48, 32), "red").save(path)
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nobody disturbed."""
    from crash_runs import WORKING, entries, finish

    output = tmp_path_factory.mktemp("undisturbed")
    finish(output)
    assert {name.rpartition("-")[0] for name in entries(output)} == set(WORKING)
    return output
