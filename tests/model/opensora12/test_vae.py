import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.model.checkpoint import CheckpointError
from runner.model.opensora12 import OpenSora12VAE

DATA = Path(__file__).parents[2] / "data/opensora12"
VECTORS = load_file(DATA / "vae_cases.safetensors")
CASES = [case for case in dict.fromkeys(key.split(".")[0] for key in VECTORS) if case != "temporal_only"]
LIMIT = 2e-4  # the vectors' README


@pytest.fixture(scope="module")
def vae():
    return OpenSora12VAE.from_pretrained(DATA / "vae3d").requires_grad_(False)


def vectors(case):
    get = lambda name: VECTORS.get(f"{case}.{name}")  # noqa: E731
    noise = {name: get(f"in.{name}") for name in ("noise_spatial", "noise_temporal")}
    return get("in.video"), noise, get("out.latent"), get("out.decoded")


def limited(output, expected):
    return output.shape == expected.shape and (output - expected).abs().max() <= LIMIT


@pytest.mark.parametrize("case", CASES)
def test_the_reference_s_latents_and_videos(case, vae):
    video, noise, latent, decoded = vectors(case)
    z = vae.encode(video, sample_posterior="mode" not in case, **noise)
    assert limited(z, latent) and z.shape[2:] == vae.latent_size(*video.shape[2:])
    assert limited(vae.decode(latent, video.shape[2]), decoded)
    if "mode" not in case:
        again, latents = vae(video, **noise)
        assert torch.equal(latents, z) and limited(again, decoded)


def test_the_temporal_half_alone(vae):
    z = VECTORS["temporal_only.in.z"]
    frames = vae.temporal_vae.decode(z, 17)
    assert limited(frames, VECTORS["temporal_only.out.decode_num_frames17"])
    assert limited(vae.temporal_vae.encode(frames).parameters, VECTORS["temporal_only.out.encode_moments"])


def test_the_3d_checkpoint_s_own_spatial_weights_win(vae):
    other = load_file(DATA / "vae2d/vae/diffusion_pytorch_model.safetensors")
    state = load_file(DATA / "vae3d/model.safetensors")
    name = "encoder.conv_in.weight"
    assert not torch.equal(other[name], state[f"spatial_vae.module.{name}"])
    assert torch.equal(vae.spatial.encoder.conv_in.weight, state[f"spatial_vae.module.{name}"])


def test_the_released_configuration_has_the_released_size():
    with torch.device("meta"):
        vae = OpenSora12VAE()
    count = lambda module: (len(module.state_dict()), sum(p.numel() for p in module.parameters()))  # noqa: E731
    assert count(vae.spatial) == (248, 83_653_863)
    assert count(vae.temporal_vae) == (267, 309_687_144)
    assert len(vae.state_dict()) == 517


def test_noise_comes_from_the_generator(vae):
    video = vectors("f17_b2")[0]
    first, again, other = (vae.encode(video, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_number_of_frames_that_the_latents_do_not_have_is_refused(vae):
    with pytest.raises(ValueError, match="51 frames have 15 latent frames, and 5 are given"):
        vae.decode(torch.zeros(1, 4, 5, 2, 2), 51)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_latents_in_float32(dtype):
    vae = OpenSora12VAE.from_pretrained(DATA / "vae3d", torch_dtype=dtype).requires_grad_(False)
    video, noise, latent, decoded = vectors("f17_b2")
    z = vae.encode(video, **noise)
    assert vae.dtype == dtype and z.dtype == vae.scale.dtype == torch.float32
    assert (z - latent).norm() / latent.norm() <= 0.03
    output = vae.decode(latent, 17)
    assert output.dtype == dtype and (output - decoded).norm() / decoded.norm() <= 0.05


def test_saved_and_loaded_again(tmp_path, vae):
    vae.save_pretrained(tmp_path)
    again = OpenSora12VAE.from_pretrained(tmp_path).requires_grad_(False)
    _, _, latent, decoded = vectors("f17_mode")
    assert limited(again.decode(latent, 17), decoded)


def test_the_2d_half_s_config_can_be_somewhere_else(tmp_path, vae):
    folder = shutil.copytree(DATA / "vae3d", tmp_path / "3d")
    shutil.copytree(DATA / "vae2d/vae", tmp_path / "2d/vae")
    with pytest.raises(CheckpointError, match="do not fit its config"):  # the release's widths
        OpenSora12VAE.from_pretrained(folder)
    for place in (tmp_path / "2d", tmp_path / "2d/vae"):
        loaded = OpenSora12VAE.from_pretrained(folder, vae2d=place)
        assert torch.equal(loaded.spatial.quant_conv.weight, vae.spatial.quant_conv.weight)
    config = json.loads((folder / "config.json").read_text())
    config["vae_2d"]["from_pretrained"] = str(tmp_path / "2d")
    (folder / "config.json").write_text(json.dumps(config))
    assert OpenSora12VAE.from_pretrained(folder).spatial.config.norm_num_groups == 4


def test_what_is_not_a_vae_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="do not fit its config"):
        OpenSora12VAE.from_pretrained(DATA / "stdit3")
    with pytest.raises(TypeError, match="knows no quantization_config"):
        OpenSora12VAE.from_pretrained(DATA / "vae3d", quantization_config={})
    folder = shutil.copytree(DATA / "vae3d", tmp_path / "3d")
    config = json.loads((folder / "config.json").read_text())
    config["vae_temporal"]["type"] = "VAE_Other"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="vae_temporal.type is 'VAE_Other'"):
        OpenSora12VAE.from_pretrained(folder, vae2d=DATA / "vae2d")
    state = load_file(folder / "model.safetensors")
    del state["shift"]
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text((DATA / "vae3d/config.json").read_text())
    with pytest.raises(CheckpointError, match=r"1 missing: shift \[1, 4, 1, 1, 1\]"):
        OpenSora12VAE.from_pretrained(folder, vae2d=DATA / "vae2d")
