import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.osp12_vectors import CASES, DATA, load, run, vectors
from torch import nn

from runner.model.checkpoint import CheckpointError
from runner.model.osp12 import OSP12Transformer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.mark.parametrize(("name", "case"), CASES)
def test_float32_gives_the_reference_s_output(name, case):
    call, expected = vectors(name, case)
    assert (run(load(name), **call) - expected).abs().max() <= 5e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_half_precision_stays_near(name, case, dtype):
    call, expected = vectors(name, case)
    output = run(load(name, dtype), **call)
    assert output.dtype == dtype
    assert (output.float() - expected).norm() / expected.norm() <= 0.03


def test_the_released_configuration_has_the_released_size():
    with torch.device("meta"):
        model = OSP12Transformer()
    assert sum(p.numel() for p in model.parameters()) == 2_771_907_856
    assert sum(p.numel() for p in model.transformer_blocks[0].parameters()) == 84_978_432
    assert not list(model.buffers())


def test_a_recorded_call_replays_by_position(model):
    call, expected = vectors()
    order = ["hidden_states", "timestep", "encoder_hidden_states", None, None, None]
    arguments = [call[name] if name else None for name in order]
    with torch.inference_mode():
        (output,) = model(*arguments, call["attention_mask"], call["encoder_attention_mask"], 0, False)
        resolution = {"resolution": None, "aspect_ratio": None}
        again = model(*arguments[:3], resolution, None, None, call["attention_mask"], call["encoder_attention_mask"])[0]
    assert torch.equal(output, again)
    assert (output - expected).abs().max() <= 5e-5


def test_forms_of_the_text_and_its_mask(model):
    call, expected = vectors()
    flat = {**call, "encoder_hidden_states": call["encoder_hidden_states"][:, 0]}
    flat["encoder_attention_mask"] = call["encoder_attention_mask"][:, 0]
    assert (run(model, **flat) - expected).abs().max() <= 5e-5
    flat["encoder_attention_mask"] = flat["encoder_attention_mask"].float()
    assert (run(model, **flat) - expected).abs().max() <= 5e-5


def test_a_mask_that_drops_nothing_is_no_mask(model):
    call, _ = vectors()
    ones = {name: torch.ones_like(call[name]) for name in ("attention_mask", "encoder_attention_mask")}
    none = dict.fromkeys(ones)
    assert torch.equal(run(model, **{**call, **ones}), run(model, **{**call, **none}))


def test_dropped_text_has_no_effect(model):
    call, expected = vectors()
    dropped = call["encoder_attention_mask"][:, 0] == 0
    assert dropped.any()
    call["encoder_hidden_states"][:, 0][dropped] = 100.0
    assert (run(model, **call) - expected).abs().max() <= 5e-5


def test_a_patch_is_kept_when_any_of_it_is(model):
    call, _ = vectors()
    sparse = torch.zeros_like(call["attention_mask"])
    sparse[..., ::2, 1::2] = 1
    assert torch.equal(run(model, **{**call, "attention_mask": sparse}), run(model, **{**call, "attention_mask": None}))
    sparse[:, :, :2, :2] = 0
    assert not torch.equal(
        run(model, **{**call, "attention_mask": sparse}), run(model, **{**call, "attention_mask": None})
    )


def test_a_batch_gives_what_its_members_give_alone(model):
    call, _ = vectors()
    together = run(model, **call)
    for row in range(2):
        alone = run(model, **{name: tensor[row : row + 1] for name, tensor in call.items()})
        assert (together[row] - alone[0]).abs().max() <= 1e-5


def test_timesteps_may_be_a_scalar_and_fractional(model):
    call, _ = vectors()
    call["timestep"] = torch.tensor(37.25)
    scalar = run(model, **call)
    call["timestep"] = torch.tensor([37.25, 37.25], dtype=torch.float64)
    assert torch.equal(scalar, run(model, **call))
    call["timestep"] = torch.tensor([37, 37])
    assert not torch.allclose(scalar, run(model, **call))


def test_nothing_stale_is_kept_between_calls():
    model = load("dit_b")
    for case in ("vid", "vid_square_alias", "img", "vid"):
        call, expected = vectors("dit_b", case)
        assert (run(model, **call) - expected).abs().max() <= 5e-5
    model = model.to(torch.bfloat16)
    assert torch.equal(run(model, **call), run(load("dit_b", torch.bfloat16), **call))


def test_training_goes_on_after_sampling(model):
    call, _ = vectors()
    run(model, **call)
    model.requires_grad_(True)
    model(**call).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def test_each_linear_layer_is_called_as_a_module(model):
    call, _ = vectors()
    calls = dict.fromkeys((name for name, module in model.named_modules() if isinstance(module, nn.Linear)), 0)
    hooks = []
    for name in calls:

        def count(*_, name=name):
            calls[name] += 1

        hooks.append(model.get_submodule(name).register_forward_hook(count))
    run(model, **call)
    for hook in hooks:
        hook.remove()
    assert set(calls.values()) == {1}
    block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v"]
    block += ["attn2.to_out.0", "ff.net.0.proj", "ff.net.2"]
    rest = ["adaln_single.emb.timestep_embedder.linear_1", "adaln_single.emb.timestep_embedder.linear_2"]
    rest += ["adaln_single.linear", "caption_projection.linear_1", "caption_projection.linear_2", "proj_out"]
    assert set(calls) == {f"transformer_blocks.{i}.{name}" for i in range(2) for name in block} | set(rest)


def test_a_block_takes_and_returns_the_tokens_first(model):
    call, _ = vectors()
    seen = []
    hook = model.transformer_blocks[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    run(model, **call)
    hook.remove()
    ((tokens, output),) = seen
    assert tokens.shape == output.shape == (2, 3 * 4 * 5, 96)


def test_missing_interpolation_scales_follow_the_training_size():
    tiny = {"num_attention_heads": 1, "attention_head_dim": 6, "cross_attention_dim": 6, "num_layers": 1}

    def scales(**size):
        return OSP12Transformer(**tiny, **size).interpolation_scales

    assert scales(sample_size=[60, 80], sample_size_t=24) == (1.5, 2.0, 2.0)
    assert scales(sample_size=[90, 160], sample_size_t=33) == (3.0, 3.0, 4.0)
    assert scales(sample_size=60, sample_size_t=1, interpolation_scale_h=1.0) == (1.0, 1.0, 1.5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"downsampler": "k333_s222"}, "downsampler"),
        ({"use_rope": False}, "use_rope"),
        ({"norm_type": "ada_norm"}, "norm_type"),
        ({"activation_fn": "geglu"}, "activation_fn"),
        ({"patch_size_t": 2}, "patch_size_t"),
        ({"cross_attention_dim": 95}, "cross_attention_dim"),
        ({"caption_channels": None}, "caption_channels"),
        ({"only_cross_attention": True}, "only_cross_attention"),
        ({"attention_head_dim": 64, "cross_attention_dim": 1536}, "attention_head_dim"),
        ({"attention_type": "gated", "upcast_attention": True}, "attention_type.*upcast_attention"),
    ],
)
def test_a_configuration_that_is_not_implemented_is_refused(wrong, named):
    with torch.device("meta"), pytest.raises(ValueError, match=f"not supported: .*{named}"):
        OSP12Transformer(**wrong)


def test_calls_that_do_not_fit_are_refused(model):
    call, _ = vectors()
    for wrong, named in (
        ({"use_image_num": 2}, "use_image_num is 2"),
        ({"hidden_states": call["hidden_states"][..., :-1]}, "8 and 9"),
        ({"encoder_hidden_states": call["encoder_hidden_states"].repeat(1, 2, 1, 1)}, r"\[2, 2, 12, 32\]"),
        ({"encoder_attention_mask": torch.zeros(2, 3, 12)}, "encoder_attention_mask is"),
        ({"attention_mask": torch.zeros(2, 60)}, "attention_mask is"),
    ):
        with pytest.raises(ValueError, match=named):
            model(**{**call, **wrong})


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(DATA / "dit_a/model_ema", tmp_path / "29x480p"))


def test_what_training_left_in_the_config_is_ignored(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "decay": 0.9999,
        "optimization_step": 7,
        "inv_gamma": 1.0,
        "power": 0.75,
        "hidden_size": 96,
        "sample_size": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    call, expected = vectors()
    model = OSP12Transformer.from_pretrained(folder)
    assert not model.training and model.config.sample_size == 8
    assert (run(model, **call) - expected).abs().max() <= 5e-5


def test_shards_and_what_save_pretrained_writes_are_read(folder, model):
    for size, files in (("10GB", 1), ("200KB", 5)):
        written = folder.parent / size
        model.save_pretrained(written, max_shard_size=size)
        assert len(list(written.glob("*.safetensors"))) >= files
        again = OSP12Transformer.from_pretrained(written)
        assert {key: again.config[key] for key in ("num_layers", "sample_size")} == {
            "num_layers": 2,
            "sample_size": [8, 10],
        }
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_hub_id_with_a_revision_is_found_in_a_local_cache(folder, tmp_path):
    cache = tmp_path / "cache"
    repository = cache / "models--somebody--release"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repository / "snapshots" / commit / "29x480p")
    (repository / "refs").mkdir()
    (repository / "refs/v1.2.0").write_text(commit)
    model = OSP12Transformer.from_pretrained(
        "somebody/release/29x480p", revision="v1.2.0", cache_dir=cache, local_files_only=True
    )
    assert model.config.num_layers == 2
    with pytest.raises(CheckpointError, match="somebody/release"):
        OSP12Transformer.from_pretrained("somebody/release", revision="v9", cache_dir=cache, local_files_only=True)


def test_tensors_that_do_not_fit_the_config_are_named(folder):
    state = load_file(folder / WEIGHTS)
    state["extra.weight"] = state.pop("transformer_blocks.1.ff.net.2.weight")
    state["proj_out.bias"] = torch.zeros(17)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as error:
        OSP12Transformer.from_pretrained(folder)
    message = str(error.value)
    assert str(folder) in message
    for words in (
        "missing: transformer_blocks.1.ff.net.2.weight",
        "unexpected: extra.weight",
        "misshapen: proj_out.bias [17]",
    ):
        assert words in message
