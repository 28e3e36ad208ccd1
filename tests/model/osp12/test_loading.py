import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from runner.model import apply_template, blocks, load_pipeline, load_transformer, osp12, skeleton
from runner.model.checkpoint import CheckpointError
from runner.model.osp12 import loading

ROOT = Path(__file__).parents[3]


@pytest.fixture
def release(tiny_checkpoint, tmp_path):
    """The released layout, to be changed by a test."""
    return shutil.copytree(tiny_checkpoint.parent, tmp_path / "release") / tiny_checkpoint.name


def section(checkpoint, **other):
    return {"name": "osp12", "checkpoint": str(checkpoint), "dtype": "bf16", **other}


def load(checkpoint, method="EulerAncestralDiscrete", **other):
    return load_pipeline(section(checkpoint, **other), method, "cpu")


def test_a_loaded_pipeline_is_saved_and_read_again(tiny_checkpoint, tmp_path):
    load(tiny_checkpoint).save_pretrained(tmp_path)
    again = osp12.OSP12Pipeline.from_pretrained(tmp_path)
    assert isinstance(again.scheduler, EulerAncestralDiscreteScheduler)
    assert "timesteps" in inspect.signature(again.scheduler.set_timesteps).parameters


def test_the_released_layout_makes_a_pipeline_that_samples(tiny_checkpoint):
    pipeline = load(tiny_checkpoint)
    assert isinstance(pipeline.scheduler, EulerAncestralDiscreteScheduler)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("a red boat", num_frames=5, height=32, width=32, num_inference_steps=2).frames
    assert frames.shape == (1, 5, 32, 32, 3)


@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_parts_are_in_the_dtype_frozen_and_in_eval_mode(dtype, tiny_checkpoint):
    pipeline = load(tiny_checkpoint, dtype=dtype)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        assert part.dtype == loading.DTYPES[dtype]
        assert not part.training and not any(p.requires_grad for p in part.parameters())
    # the test vectors' VAE is bfloat16 on disk, their transformer float32
    state = load_file(tiny_checkpoint / "diffusion_pytorch_model.safetensors")
    assert torch.equal(pipeline.transformer.proj_out.weight, state["proj_out.weight"].to(loading.DTYPES[dtype]))


def test_parts_inside_the_checkpoint_come_before_those_beside_it(release):
    (release.parent / "vae").rename(release / "vae")
    (release.parent / "text_encoder").rename(release / "text_encoder")
    (release.parent / "vae").mkdir()
    assert load(release).vae is not None


def test_parts_can_be_somewhere_else(release, tmp_path):
    places = {part: (release.parent / part).rename(tmp_path / part.upper()) for part in ("vae", "text_encoder")}
    assert load(release, **{part: str(place) for part, place in places.items()}).text_encoder is not None


@pytest.mark.parametrize(
    ("settings", "tiles"),
    [
        ({"enable_tiling": False}, None),
        ({"enable_tiling": True, "tile_overlap_factor": 0.25, "save_memory": False}, (512, 29, 0.25)),
        ({"enable_tiling": True, "tile_overlap_factor": 0.125, "save_memory": True}, (256, 29, 0.125)),
    ],
)
def test_tiling(settings, tiles, tiny_checkpoint):
    vae = load(tiny_checkpoint, **settings).vae
    assert vae.use_tiling == (tiles is not None)
    if tiles:
        assert (vae.tile_sample_min_size, vae.tile_sample_min_size_t, vae.tile_overlap_factor) == tiles


def test_a_t5_with_a_fast_tokenizer(release):
    folder = release.parent / "text_encoder"
    config = {
        **json.loads((folder / "config.json").read_text()),
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
    }
    _, tokenizer = loading.load_text_encoder(str(folder))
    before = tokenizer("a red boat", padding="max_length", max_length=9)
    shutil.rmtree(folder)
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **special).save_pretrained(folder)
    T5EncoderModel(T5Config(**config)).save_pretrained(folder)
    pipeline = load(release)
    assert isinstance(pipeline.text_encoder, T5EncoderModel) and (folder / "tokenizer.json").is_file()
    assert pipeline.tokenizer("a red boat", padding="max_length", max_length=9).input_ids == before.input_ids


def test_a_transformer_can_be_given_and_the_checkpoint_s_is_not_read(release):
    given = load_transformer(section(release), "cpu")
    assert given.dtype == torch.bfloat16 and not given.training
    assert not any(p.requires_grad for p in given.parameters())
    (release / "diffusion_pytorch_model.safetensors").write_bytes(b"unreadable")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(release)
    pipeline = load_pipeline(section(release), "DDIM", "cpu", given)
    assert pipeline.transformer is given


def test_a_skeleton_has_the_shapes_and_no_weights(tiny_checkpoint):
    bones, whole = skeleton(section(tiny_checkpoint)), load_transformer(section(tiny_checkpoint), "cpu")
    assert all(p.is_meta for p in bones.parameters())
    for (name, bone), (other, full) in zip(bones.named_parameters(), whole.named_parameters(), strict=True):
        assert (name, bone.shape, bone.dtype) == (other, full.shape, full.dtype)


def test_the_template_of_the_model_section_is_applied():
    assert apply_template({"name": "osp12", "template": "see {}"}, "a boat") == "see a boat"


def test_what_is_missing_is_named(release, tmp_path):
    with pytest.raises(CheckpointError, match="no folder /nowhere/29x480p; expected the transformer's config.json"):
        load("/nowhere/29x480p")
    with pytest.raises(CheckpointError, match="no autoencoder: neither .*9x32p nor .*release has a vae/config.json"):
        load(_without(release, "vae"))
    with pytest.raises(CheckpointError, match="no folder /nowhere/vae"):
        load(release, vae="/nowhere/vae")
    with pytest.raises(CheckpointError, match="no folder /nowhere/t5 with a text encoder"):
        load(release, vae=str(tmp_path / "kept"), text_encoder="/nowhere/t5")
    with pytest.raises(CheckpointError, match="has no config.json"):
        load(release, vae=str(tmp_path / "kept"), text_encoder=str(tmp_path))
    with pytest.raises(CheckpointError, match="describes a CausalVAEModel"):
        load(tmp_path / "kept")
    (release / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="9x32p has no weights"):
        load(release, vae=str(tmp_path / "kept"))


def _without(release, part):
    (release.parent / part).rename(release.parent.parent / "kept")
    return release


def test_a_text_encoder_that_is_not_whole_is_refused(release):
    folder = release.parent / "text_encoder"
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("block.0.layer.0.SelfAttention.q.weight"))
    lost = state.pop(name)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors: {name}"):
        load(release)
    save_file({**state, name: lost}, folder / "model.safetensors", metadata={"format": "pt"})
    for tokenizer in [*folder.glob("spiece.model"), *folder.glob("tokenizer*")]:
        tokenizer.unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json or spiece.model"):
        load(release)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="holds a 'bert'; the text encoder must be one of mt5, t5"):
        load(release)


def test_a_hub_id_with_a_revision_is_read_from_a_local_cache(release, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache/models--somebody--release"
    shutil.copytree(release.parent, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/v1.2.0").write_text(commit)
    hub = {"revision": "v1.2.0", "cache_dir": str(tmp_path / "cache")}
    local = str(release.parent / "text_encoder")
    pipeline = load("somebody/release/9x32p", text_encoder=local, **hub)
    assert len(pipeline.transformer.transformer_blocks) == 2
    pipeline = load("somebody/release/9x32p", text_encoder="somebody/release/text_encoder", **hub)
    assert pipeline.text_encoder.config.d_model == 32
    with pytest.raises(CheckpointError, match="google/mt5-xxl"):  # what the release expects, not in this cache
        load("somebody/release/9x32p", **hub)


def test_wrong_names_are_refused(tiny_checkpoint):
    for name in ("osp13", "checkpoint", "osp12.rules"):
        with pytest.raises(ValueError, match=f"model.name is '{name}'"):
            load(tiny_checkpoint, name=name)
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of bf16, fp16, fp32"):
        load(tiny_checkpoint, dtype="int8")
    with pytest.raises(ValueError, match="sample_method is 'Euler'"):
        load(tiny_checkpoint, method="Euler")


def test_the_blocks_are_declared_in_order(tiny_checkpoint):
    pipeline = load(tiny_checkpoint)
    assert blocks(pipeline) == ["transformer_blocks.0", "transformer_blocks.1"]
    names = [name for name, _ in pipeline.transformer.named_modules()]
    assert set(blocks(pipeline)) <= set(names)


def test_blocks_of_a_pipeline_that_nobody_here_wrote():
    class Block(nn.Linear):
        pass

    class Foreign(nn.Module):
        _no_split_modules = ["Block"]

        def __init__(self):
            super().__init__()
            self.embeds = nn.ModuleList([nn.Linear(1, 1)])
            self.layers = nn.ModuleList([Block(1, 1), Block(1, 1)])

    assert blocks(SimpleNamespace(transformer=Foreign())) == ["layers.0", "layers.1"]
    with pytest.raises(ValueError, match="Linear declares no blocks"):
        blocks(SimpleNamespace(transformer=nn.Linear(1, 1)))


def test_the_rooms_can_be_entered_without_torch():
    code = "import sys, runner.model, runner.model.osp12, runner.model.osp12.rules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert all(getattr(osp12, name) for name in osp12.__all__)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = osp12.nothing
