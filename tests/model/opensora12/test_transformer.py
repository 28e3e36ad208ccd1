import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.opensora12_vectors import CASES, DATA, VECTORS, load, run, vectors

from runner.model import blocks
from runner.model.checkpoint import CheckpointError
from runner.model.opensora12 import OpenSora12Transformer
from runner.model.opensora12.layers import position_embedding

LIMIT = 3e-4  # the vectors' README


@pytest.fixture(scope="module")
def model():
    return load()


def limited(output, expected):
    return (output - expected).abs().max() <= LIMIT


@pytest.mark.parametrize("case", CASES)
def test_float32_gives_the_reference_s_output(case, model):
    call, expected = vectors(case)
    output = run(model, **call)
    assert limited(output, expected) and output.dtype == torch.float32
    (first,) = model(**call, return_dict=False)
    assert torch.equal(first, output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_nearer_than_the_reference_in_bfloat16(case, dtype):
    call, expected = vectors(case)
    output = run(load(dtype), **call)
    reference = json.loads((DATA / "tolerance.json").read_text())[f"stdit3/{case}"]["bf16_rel_l2"]
    error = float((output - expected).norm() / expected.norm())
    assert output.dtype == torch.float32 and error <= 0.015 and error <= max(reference, 0.009)


@pytest.mark.parametrize("case", ["t2v_mask", "i2v_xmask"])
def test_every_part_gives_the_reference_s_output(case, model):
    call, _ = vectors(case)
    start = f"{case}.inter."
    expected = {key.removeprefix(start): value for key, value in VECTORS.items() if key.startswith(start)}
    got, hooks = {}, []
    modules = {name: name.removesuffix("_last_call") for name in expected if name != "pos_embed"}
    for name, module in modules.items():
        keep = lambda _, args, output, name=name: got.__setitem__(name, output)  # noqa: E731
        hooks.append(model.get_submodule(module).register_forward_hook(keep))
    run(model, **call)
    for hook in hooks:
        hook.remove()
    rows, columns = (-(-side // 2) for side in call["x"].shape[3:])
    scale = (call["height"][0] * call["width"][0]).sqrt() / 512
    got["pos_embed"] = position_embedding(rows, columns, 48, scale)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape and limited(got[name], value), name


def test_the_released_configuration_has_the_released_size():
    with torch.device("meta"):
        model = OpenSora12Transformer()
    names = model.state_dict()
    assert len(names) == 973 and names["y_embedder.y_embedding"].numel() == 1_228_800
    assert sum(t.numel() for t in names.values()) == 1_208_872_772
    assert not list(model.buffers())


def test_names_and_shapes_are_those_of_the_release(model):
    state = load_file(DATA / "stdit3/model.safetensors")
    assert {name: t.shape for name, t in model.state_dict().items()} == {name: t.shape for name, t in state.items()}


def test_blocks_take_turns(model):
    expected = [f"{kind}_blocks.{index}" for index in range(2) for kind in ("spatial", "temporal")]
    assert blocks(SimpleNamespace(transformer=model)) == expected
    ran, hooks = [], []
    for name in expected:
        note = lambda *_, name=name: ran.append(name)  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_pre_hook(note))
    run(model, **vectors("t2v_mask")[0])
    for hook in hooks:
        hook.remove()
    assert ran == expected


def test_rotation_stays_in_float32():
    model = load(torch.bfloat16)
    assert model.rope.freqs.dtype == torch.float32 and model.dtype == torch.bfloat16
    assert torch.equal(model.rope.freqs, load().rope.freqs)


def test_large_sizes_do_not_overflow_float16():
    call, _ = vectors("t2v_mask")
    call |= {"height": torch.full((2,), 720.0), "width": torch.full((2,), 1280.0)}
    assert run(load(torch.float16), **call).isfinite().all()


def test_what_is_left_out_is_the_default(model):
    call, _ = vectors("t2v_mask")
    call |= {"height": torch.full((2,), 64.0), "width": torch.full((2,), 96.0), "fps": torch.full((2,), 24.0)}
    bare = {name: call[name] for name in ("x", "timestep", "mask")}
    assert torch.equal(run(model, **bare, y=call["y"][:, 0]), run(model, **call))


def test_all_frames_denoised_is_no_mask(model):
    call, expected = vectors("t2v_mask")
    assert limited(run(model, **call, x_mask=torch.ones(2, 5)), expected)


def test_dropped_text_has_no_effect_and_may_be_cut_off(model):
    call, expected = vectors("t2v_mask")
    longest = int(call["mask"].sum(1).max())
    call["y"][:, 0][call["mask"] == 0] = 100.0
    assert limited(run(model, **call), expected)
    call |= {"y": call["y"][:, :, :longest], "mask": call["mask"][:, :longest]}
    assert limited(run(model, **call), expected)


def test_a_batch_gives_what_its_members_give_alone(model):
    call, _ = vectors("i2v_xmask")
    together = run(model, **call)
    for row in range(2):
        alone = run(model, **{name: tensor[row : row + 1] for name, tensor in call.items()})
        assert (together[row] - alone[0]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x_mask": torch.ones(2, 4)}, r"x_mask is \[2, 4\]; expected \[2, 5\]"),
        ({"fps": torch.ones(3)}, "fps has 3 rows for a batch of 2"),
        ({"mask": torch.ones(2, 3)}, r"mask \[2, 3\]; expected"),
        ({"mask": torch.cat([torch.zeros(3, 1), torch.ones(3, 11)], 1)}, "mask has 3 rows"),
        ({"y": torch.ones(1, 12, 32)}, r"y is \[1, 12, 32\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, says, model):
    with pytest.raises(ValueError, match=says):
        run(model, **vectors("t2v_mask")[0] | change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"qk_norm_legacy": True}, "qk_norm_legacy is True"),
        ({"skip_y_embedder": True}, "skip_y_embedder is True"),
        ({"patch_size": [2, 2, 2]}, "only one frame a patch"),
        ({"num_heads": 5}, "hidden_size 48 does not fall into 5 heads"),
    ],
)
def test_configs_that_are_not_implemented_are_refused(change, says, tmp_path):
    folder = shutil.copytree(DATA / "stdit3", tmp_path / "stdit3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=says):
        load(folder=folder)


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_a_pickle_of_tensors_is_read_and_code_is_not_run(suffix, tmp_path, model):
    folder = shutil.copytree(DATA / "stdit3", tmp_path / "stdit3")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights: none of diffusion_pytorch_model.safetensors"):
        load(folder=folder)
    torch.save(state, folder / f"weights.{suffix}")
    call, _ = vectors("t2v_mask")
    assert torch.equal(run(load(folder=folder), **call), run(model, **call))
    torch.save(state, folder / "more.pt")
    with pytest.raises(CheckpointError, match="holds 2 .pt or .pth files"):
        load(folder=folder)
    (folder / "more.pt").unlink()
    torch.save({"state_dict": SimpleNamespace()}, folder / f"weights.{suffix}")
    with pytest.raises(CheckpointError, match="code is not run"):
        load(folder=folder)


def test_shards_are_read(tmp_path, model):
    folder = shutil.copytree(DATA / "stdit3", tmp_path / "stdit3")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [sorted(state)[::2], sorted(state)[1::2]]
    for number, part in enumerate(names):
        save_file({name: state[name] for name in part}, folder / f"model-{number}.safetensors")
    index = {name: f"model-{number}.safetensors" for number, part in enumerate(names) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(load(folder=folder).rope.freqs, model.rope.freqs)


def test_saved_and_loaded_again(tmp_path, model):
    model.save_pretrained(tmp_path)
    call, _ = vectors("i2v_xmask")
    assert torch.equal(run(load(folder=tmp_path), **call), run(model, **call))


def test_another_model_is_refused(tmp_path):
    folder = shutil.copytree(DATA / "stdit3", tmp_path / "stdit3")
    state = load_file(folder / "model.safetensors")
    del state["rope.freqs"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: rope.freqs \[6\]"):
        load(folder=folder)
