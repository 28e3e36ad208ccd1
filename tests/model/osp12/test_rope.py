import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from runner.model.osp12.rope import Rotary, rotary_table, rotate

DATA = Path(__file__).parents[2] / "data/osp12/rope"
STATS = json.loads((DATA / "stats.json").read_text())
TABLES = [name for name in STATS if name != "apply"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def cases():
    return load_file(DATA / "cases.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_an_axis_is_the_reference_s(name, dtype, cases):
    channels, length, scale = (kind(part[1:]) for kind, part in zip((int, int, float), name.split("_"), strict=True))
    table = rotary_table((length, 1, 1), 3 * channels, (scale, 1.0, 1.0), dtype=DTYPES[dtype])
    half = channels // 2
    limit = 1e-6 if dtype == "fp32" else 0
    assert (table.cos[:, :channels] - cases[f"{name}_{dtype}.cos"]).abs().max() <= limit
    assert (table.sin[:, half:channels] - cases[f"{name}_{dtype}.sin"][:, half:]).abs().max() <= limit
    assert torch.equal(table.sin[:, :half], -table.sin[:, half:channels])


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_turn_as_in_the_reference(dtype, cases):
    info = STATS["apply"]
    table = rotary_table((info["t"], info["h"], info["w"]), info["head_dim"], info["scales_thw"], dtype=DTYPES[dtype])
    turned = rotate(cases["apply.x"].to(DTYPES[dtype]), table)
    assert (turned - cases[f"apply_{dtype}.y"]).abs().max() <= (1e-6 if dtype == "fp32" else 0)


def test_equal_axes_with_different_scales_have_different_tables():
    table = rotary_table((4, 4, 4), 24, (1.0, 1.5, 2.0))
    frame, row, column = table.cos.view(4, 4, 4, 3, 8).diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=2).unbind(0)
    assert not torch.allclose(frame, row) and not torch.allclose(row, column)


axis = st.integers(1, 5)
scale = st.floats(0.5, 4)


@settings(max_examples=30, deadline=None)
@given(grid=st.tuples(axis, axis, axis), scales=st.tuples(scale, scale, scale), pairs=st.integers(1, 4))
def test_a_rotation_keeps_lengths(grid, scales, pairs):
    table = rotary_table(grid, 6 * pairs, scales)
    x = torch.randn(2, grid[0] * grid[1] * grid[2], 6 * pairs)
    assert torch.allclose(rotate(x, table).norm(dim=-1), x.norm(dim=-1), rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(moved=st.integers(0, 2), by=st.integers(1, 3))
def test_attention_sees_relative_positions_only(moved, by):
    grid = (5, 5, 5)
    cos, sin = (part.double().view(*grid, 24) for part in rotary_table(grid, 24, (1.0, 1.5, 2.0)))
    q, k = torch.randn(2, 24, dtype=torch.float64)

    def logit(a, b):
        return rotate(q, Rotary(cos[a], sin[a])) @ rotate(k, Rotary(cos[b], sin[b]))

    first, second = [0, 1, 1], [1, 0, 1]
    before = logit(tuple(first), tuple(second))
    first[moved] += by
    second[moved] += by
    assert torch.allclose(before, logit(tuple(first), tuple(second)), atol=1e-5)


def test_a_table_made_while_sampling_can_be_trained_with():
    with torch.inference_mode():
        table = rotary_table((1, 2, 2), 6, (1.0, 1.0, 1.0))
    x = torch.randn(4, 6, requires_grad=True)
    rotate(x, table).sum().backward()
    assert x.grad is not None


def test_a_head_that_three_axes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="64.*multiple of 6"):
        rotary_table((1, 1, 1), 64, (1.0, 1.0, 1.0))
