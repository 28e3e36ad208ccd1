"""OSP12VAE against the vectors of the released CausalVAEModel (tests/data/osp12/vae_a), and what loading promises."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from runner.model.checkpoint import CheckpointError
from runner.model.osp12.vae import OSP12VAE
from runner.model.osp12.vae_blocks import CHUNK, CausalConv3d

VECTORS = Path(__file__).parents[2] / "data" / "osp12" / "vae_a"
FOLDER = VECTORS / "vae"
CASES = json.loads((VECTORS / "stats.json").read_text())
SMALL = {"hidden_size": 32, "hidden_size_mult": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def golden():
    return load_file(VECTORS / "cases.safetensors")


@pytest.fixture(scope="module")
def weights():
    return load_file(FOLDER / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def loaded():
    return {dtype: OSP12VAE.from_pretrained(FOLDER, torch_dtype=dtype) for dtype in DTYPES}


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture
def vae(loaded):
    model = loaded[torch.float32]
    yield model
    model.disable_tiling()


def run(model: OSP12VAE, name: str, golden: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model makes of a case, and what the release made of it."""
    tile = CASES[name]["tile"]
    model.disable_tiling()
    if tile:
        model.enable_tiling()
        model.tile_overlap_factor = tile["ov"]
        model.tile_sample_min_size, model.tile_latent_min_size = tile["s"], tile["l"]
        model.tile_sample_min_size_t, model.tile_latent_min_size_t = tile["st"], tile["lt"]
    with torch.no_grad():
        if name.startswith("enc"):
            distribution = model.encode(golden[f"{name}.x"].to(model.dtype)).latent_dist
            assert torch.equal(distribution.mode(), distribution.parameters[:, :4])
            return distribution.parameters, golden[f"{name}.moments"]
        return model.decode(golden[f"{name}.z"].to(model.dtype)), golden[f"{name}.y"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_release(loaded, golden, name, dtype):
    got, wanted = run(loaded[dtype], name, golden)
    assert got.dtype == dtype and got.shape == wanted.shape
    torch.testing.assert_close(got, wanted.to(dtype), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("dtype", "limit", "name"),
    [  # a CPU may take minutes for convolutions in half precision
        pytest.param(torch.bfloat16, 0.03, name, marks=[pytest.mark.slow] if name == "dec_tiled" else [])
        for name in CASES
    ]
    + [
        pytest.param(torch.float16, 0.005, name, marks=[] if name.endswith("image") else pytest.mark.slow)
        for name in CASES
    ],
)
def test_half_precision_stays_close(loaded, golden, name, dtype, limit):
    got, wanted = run(loaded[dtype], name, golden)
    assert got.dtype == dtype
    assert (got.float() - wanted).norm() / wanted.norm() < limit


def test_defaults_are_the_released_model():
    with torch.device("meta"):
        model = OSP12VAE()
    assert sum(parameter.numel() for parameter in model.parameters()) == 239_189_991
    shipped = json.loads((FOLDER / "config.json").read_text())
    resized = {"hidden_size", "hidden_size_mult"}
    for key, value in shipped.items():
        if not key.startswith("_") and key not in resized:
            assert list(model.config[key]) == value if isinstance(value, list) else model.config[key] == value, key
    assert model.scaling_factor == 0.18215
    keys = model.state_dict()
    assert keys["encoder.conv_in.weight"].shape == (128, 3, 3, 3)
    assert keys["encoder.down.1.downsample.conv.conv.weight"].shape == (256, 256, 3, 3, 3)
    assert keys["decoder.up.3.block.0.conv1.conv.weight"].shape == (512, 512, 3, 3, 3)


def test_latents_are_sampled_from_a_clamped_distribution(vae, golden):
    distribution = vae.encode(golden["enc_image.x"].float()).latent_dist
    first = distribution.sample(torch.Generator().manual_seed(3))
    noise = torch.randn(distribution.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(first, distribution.mean + torch.exp(distribution.logvar / 2) * noise)
    with torch.no_grad():
        bias = vae.quant_conv.conv.bias
        kept = bias.clone()
        bias[4:] += 100
        assert vae.encode(golden["enc_image.x"].float()).latent_dist.logvar.max() == 20
        bias.copy_(kept)


def test_gradients_flow_and_agree_with_inference(golden, weights):
    vae = OSP12VAE.from_pretrained(FOLDER).train()
    vae.decoder.to(memory_format=torch.channels_last_3d)
    x = golden["enc_video.x"].float().to(memory_format=torch.channels_last_3d).requires_grad_()
    video, posterior = vae(x, sample_posterior=False)
    (video.square().mean() + posterior.mean.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert x.grad is not None and x.grad.abs().sum() > 0
    with torch.no_grad():  # other code: frames in chunks, activations in place
        torch.testing.assert_close(vae(x, sample_posterior=False)[0], video, rtol=0, atol=3e-5)
    assert torch.equal(
        vae.state_dict()["decoder.conv_in.conv.weight"].bfloat16(), weights["decoder.conv_in.conv.weight"]
    )


def test_inference_convolves_a_few_frames_at_a_time(vae, golden):
    seen = []
    convolutions = [module for module in vae.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args: seen.append(args[0].shape[0 if args[0].ndim == 4 else 2] // max(m.stride[0], 1))
        )
        for module in convolutions
    ]
    with torch.no_grad():
        vae.decode(vae.encode(golden["enc_video.x"].float()).latent_dist.mode())
    for hook in hooks:
        hook.remove()
    assert len(seen) > len(convolutions) and max(seen) <= CHUNK + 2


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), ((1, 3, 3), 1), (1, 1)])
@pytest.mark.parametrize("frames", [1, 2, CHUNK + 1, 4 * CHUNK + 1])
def test_causal_convolution(kernel, stride, frames):
    torch.manual_seed(0)
    layer = CausalConv3d(2, 3, kernel, stride).double()
    x = torch.randn(2, 2, frames, 6, 4, dtype=torch.float64)
    whole = layer(x)
    assert whole.shape == (2, 3, (frames - 1) // stride + 1, 6 // stride, 4 // stride)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole)
        later = x.clone()
        later[:, :, -1] += 1  # the last frame is heard in the last output only
        torch.testing.assert_close(layer(later)[:, :, :-1], whole[:, :, :-1])
        still = layer(x[:, :, :1].expand(-1, -1, frames, -1, -1))  # before the start, the first frame repeats
        torch.testing.assert_close(still, still[:, :, :1].expand_as(still))


def test_tiling_settings_of_the_guide(vae):
    def settings():
        names = ("sample_min_size", "latent_min_size", "sample_min_size_t", "latent_min_size_t", "overlap_factor")
        return [getattr(vae, f"tile_{name}") for name in names]

    fresh = OSP12VAE(**SMALL)
    assert not fresh.use_tiling and (fresh.tile_sample_min_size, fresh.tile_latent_min_size) == (256, 32)
    assert (fresh.tile_sample_min_size_t, fresh.tile_latent_min_size_t, fresh.tile_overlap_factor) == (33, 16, 0.125)
    vae.enable_guide_tiling(0.25)
    assert vae.use_tiling and settings() == [512, 64, 29, 8, 0.25]
    vae.enable_guide_tiling(0.125, save_memory=True)
    assert settings() == [256, 32, 29, 8, 0.125]
    vae.enable_tiling(tile_sample_min_size_t=17)
    assert settings() == [256, 32, 17, 5, 0.125]
    vae.disable_tiling()
    assert not vae.use_tiling


@pytest.mark.parametrize(
    "setting", [(250, 29, 0.125), (256, 30, 0.125), (256, 29, 0.2), (256, 29, 1.0), (256, 1, 0.125)]
)
def test_tiles_that_do_not_fit_are_refused(vae, setting):
    with pytest.raises(ValueError, match="tile_"):
        vae.enable_tiling(*setting)
    assert not vae.use_tiling


def test_tiles_cover_every_frame_once(vae):
    """24 latents in chunks of 8 are [0,8] [7,15] [14,22] [21,24]; none is added where one ends on the last."""
    seen = []

    def decode(z):
        seen.append((int(z[0, 0, 0, 0, 0]), int(z[0, 0, -1, 0, 0]) + 1))
        return z.repeat_interleave(4, dim=2)[:, :3, 3:].repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)

    vae.enable_tiling(256, 29, 0.125)
    vae._decode = decode
    try:
        for frames, chunks in [(24, [(0, 8), (7, 15), (14, 22), (21, 24)]), (15, [(0, 8), (7, 15)]), (8, [(0, 8)])]:
            seen.clear()
            z = torch.arange(float(frames)).view(1, 1, -1, 1, 1).expand(1, 4, -1, 1, 1)
            video = vae.decode(z)
            assert seen == chunks
            assert video[0, 0, :, 0, 0].tolist() == [t // 4 for t in range(3, 4 * frames)]
    finally:
        del vae._decode


def test_tiles_meet_where_they_belong(vae):
    """A picture that each tile reproduces exactly comes out whole: 60x80 latents, tiles at 0, 28, 56."""
    z = torch.arange(60.0).view(1, 1, 1, -1, 1) * 100 + torch.arange(80.0)
    starts = []

    def decode(tile):
        starts.append(divmod(int(tile[0, 0, 0, 0, 0]), 100))
        return tile.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)

    vae.enable_guide_tiling(0.125, save_memory=True)
    vae._decode = decode
    try:
        torch.testing.assert_close(vae.decode(z), decode(z))
    finally:
        del vae._decode
    assert starts[:-1] == [(top, left) for top in (0, 28, 56) for left in (0, 28, 56)]


def test_what_fits_one_tile_is_not_tiled(vae, golden):
    whole = run(vae, "dec_video", golden)[0]
    vae.enable_tiling(64, 9, 0.25)
    with torch.no_grad():
        assert torch.equal(vae.decode(golden["dec_video.z"]), whole)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_conv_in", "Conv1d"),
        ("encoder_attention", "AttnBlock3D"),
        ("encoder_resnet_blocks", ["ResnetBlock2D", "ResnetBlock4D", "ResnetBlock3D", "ResnetBlock3D"]),
        ("encoder_spatial_downsample", ["Downsample", "SpatialDownsample2x", "", ""]),
        ("decoder_spatial_upsample", ["", "Upsample9x", "", ""]),
        ("decoder_resnet_blocks", ["ResnetBlock3D"]),
        ("decoder_temporal_upsample", ["", "", "TimeUpsample2x", "TimeUpsample2x"]),
        ("attn_resolutions", [16]),
    ],
)
def test_unknown_architecture_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        OSP12VAE(**SMALL, **{key: value})


def test_channels_must_fall_into_norm_groups():
    with pytest.raises(ValueError, match="48 channels"):
        OSP12VAE(hidden_size=48)


# loading


def layout(tmp_path: Path, content: object, *, safetensors: bool = False) -> Path:
    """A folder as released: config.json with training keys, checkpoint.ckpt."""
    config = json.loads((FOLDER / "config.json").read_text())
    config |= {
        "lr": 1e-5,
        "loss_type": "LPIPSWithDiscriminator3D",
        "loss_params": {"kl_weight": 1e-6},
        "_name_or_path": "x",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(content, tmp_path / "checkpoint.ckpt")
    if safetensors:
        shutil.copy(FOLDER / "diffusion_pytorch_model.safetensors", tmp_path)
    return tmp_path


def marked(weights: dict, mark: float, prefix: str = "") -> dict:
    return {prefix + name: torch.full_like(tensor, mark) for name, tensor in weights.items()}


def mark_of(folder: Path, **options) -> float:
    return next(OSP12VAE.from_pretrained(folder, **options).parameters()).flatten()[0].item()


@pytest.mark.parametrize("legacy", [False, True])
def test_ckpt_prefers_the_average_and_wins_over_safetensors(tmp_path, weights, legacy):
    content = {
        "ema_state_dict": marked(weights, 1, "module."),
        "state_dict": {"gen_model": marked(weights, 2), "dics_model": {}},
        "epoch": 3,
    }
    folder = layout(tmp_path, content, safetensors=True)
    if legacy:
        torch.save(content, folder / "checkpoint.ckpt", _use_new_zipfile_serialization=False)
    assert mark_of(folder) == 1
    assert mark_of(folder.parent, subfolder=folder.name) == 1


@pytest.mark.parametrize("average", [{}, None])
@pytest.mark.parametrize("nested", [False, True])
def test_ckpt_without_average_gives_the_generator(tmp_path, weights, average, nested):
    state = marked(weights, 2) | {"loss.discriminator.weight": torch.zeros(3)}
    content = {"state_dict": {"gen_model": state} if nested else state}
    if average is not None:
        content["ema_state_dict"] = average
    assert mark_of(layout(tmp_path, content)) == 2


def test_ckpt_runs_no_code(tmp_path, weights):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    folder = layout(tmp_path, {"state_dict": marked(weights, 1), "callback": Trap()})
    with pytest.raises(CheckpointError, match="code is not run"):
        OSP12VAE.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_ckpt_that_cannot_be_read_is_refused(tmp_path, weights):
    folder = layout(tmp_path, {"state_dict": marked(weights, 1)})
    whole = (folder / "checkpoint.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello"):
        (folder / "checkpoint.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match="checkpoint.ckpt"):
            OSP12VAE.from_pretrained(folder)
    torch.save(torch.zeros(3), folder / "checkpoint.ckpt")
    with pytest.raises(CheckpointError, match="no dictionary"):
        OSP12VAE.from_pretrained(folder)
    shutil.copy(folder / "checkpoint.ckpt", folder / "last.ckpt")
    with pytest.raises(CheckpointError, match="2 .ckpt files"):
        OSP12VAE.from_pretrained(folder)


def test_misfitting_ckpt_is_refused_in_one_error(tmp_path, weights):
    state = dict(weights)
    del state["quant_conv.conv.bias"]
    state["encoder.conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    state["encoder.extra"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        OSP12VAE.from_pretrained(layout(tmp_path, state))
    message = str(caught.value)
    assert "1 missing: quant_conv.conv.bias [8]" in message
    assert "1 unexpected: encoder.extra [7]" in message
    assert "1 misshapen: encoder.conv_in.weight [32, 4, 3, 3], not [32, 3, 3, 3]" in message


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_honored(loaded, dtype):
    assert {parameter.dtype for parameter in loaded[dtype].parameters()} == {dtype}
    assert not loaded[dtype].training


def test_saved_model_loads_again(tmp_path, loaded):
    model = loaded[torch.bfloat16]
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    again = OSP12VAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert again.config.items() <= model.config.items()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    again.save_pretrained(tmp_path)  # onto the very file that it was read from
    assert torch.equal(OSP12VAE.from_pretrained(tmp_path).encoder.conv_in.weight, model.encoder.conv_in.weight.float())
