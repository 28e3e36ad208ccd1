"""The four folders of the release as they stand, and what is wrong with others."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from runner.model import blocks, load_pipeline, load_transformer, skeleton
from runner.model.checkpoint import CheckpointError


def section(folder, **other):
    return {"name": "opensora12", "checkpoint": str(folder), "dtype": "fp32", **other}


def own_copy(released, tmp_path):
    shutil.copytree(released.parent, tmp_path / "released")
    return tmp_path / "released" / released.name


def test_four_released_folders_make_a_pipeline(tiny_opensora12):
    pipeline = load_pipeline(section(tiny_opensora12, loop=2, micro_batch_size=3), "RFLOW", "cpu")
    own = load_file(tiny_opensora12.parent / "OpenSora-VAE-v1.2/model.safetensors")
    name = "encoder.conv_in.weight"
    # vae2d's own weights are others, and lose.
    assert torch.equal(pipeline.vae.spatial.state_dict()[name], own[f"spatial_vae.module.{name}"])
    assert (pipeline.vae.micro_batch_size, pipeline.scheduler.loops) == (3, 2)
    assert not any(p.requires_grad for p in pipeline.transformer.parameters())
    pipeline.set_progress_bar_config(disable=True)
    small = {"num_frames": 17, "height": 16, "width": 24, "num_inference_steps": 1, "max_sequence_length": 12}
    frames = pipeline("a red boat", generator=torch.Generator().manual_seed(1), loop=2, **small).frames
    assert frames.shape == (1, 17, 16, 24, 3)  # of the second clip the 17 that it shares with the first are cut off


def test_blocks_take_turns(tiny_opensora12):
    pipeline = load_pipeline(section(tiny_opensora12), "RFLOW", "cpu")
    assert blocks(pipeline) == ["spatial_blocks.0", "temporal_blocks.0", "spatial_blocks.1", "temporal_blocks.1"]


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pickled_tensors_are_read_without_running_code(tiny_opensora12, tmp_path, suffix):
    folder = own_copy(tiny_opensora12, tmp_path)
    for name in (folder, folder.parent / "OpenSora-VAE-v1.2"):
        state = load_file(name / "model.safetensors")
        (name / "model.safetensors").unlink()
        torch.save(state, name / f"model{suffix}")
    ours, theirs = load_transformer(section(folder), "cpu"), load_transformer(section(tiny_opensora12), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    load_pipeline(section(folder), "RFLOW", "cpu")


def test_a_pickle_with_code_is_refused(tiny_opensora12, tmp_path):
    folder = own_copy(tiny_opensora12, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"x": print}, folder / "model.pt")
    with pytest.raises(CheckpointError, match="code is not run"):
        load_transformer(section(folder), "cpu")


def test_a_skeleton_has_the_modules_and_no_weights(tiny_opensora12):
    hollow = skeleton(section(tiny_opensora12, dtype="bf16"))
    assert {p.device.type for p in hollow.parameters()} == {"meta"}
    assert hollow.state_dict().keys() == load_transformer(section(tiny_opensora12), "cpu").state_dict().keys()


def test_what_cannot_be_loaded_is_said(tiny_opensora12, tiny_checkpoint, tmp_path):
    folder = own_copy(tiny_opensora12, tmp_path)
    with pytest.raises(CheckpointError, match="describes a .*expected STDiT3"):
        load_pipeline(section(tiny_checkpoint), "RFLOW", "cpu")
    with pytest.raises(CheckpointError, match="there is no folder /nowhere"):
        load_pipeline(section("/nowhere"), "RFLOW", "cpu")
    with pytest.raises(ValueError, match="sample_method is 'DDIM'; it must be RFLOW"):
        load_pipeline(section(folder), "DDIM", "cpu")
    shutil.rmtree(folder.parent / "OpenSora-VAE-v1.2")
    with pytest.raises(CheckpointError, match="there is no autoencoder"):
        load_pipeline(section(folder), "RFLOW", "cpu")
    shutil.copytree(tiny_opensora12.parent / "OpenSora-VAE-v1.2", folder.parent / "vae3d")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(CheckpointError, match="misshapen"):
        load_pipeline(section(folder), "RFLOW", "cpu")
