from __future__ import annotations

import pytest
from torch import nn

from runner.quant.layers import select


def names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def test_every_linear_is_quantized_or_has_its_reason(toy: nn.Module) -> None:
    selection = select(toy, ["*"], ["*net.2*", "*adaln_single*", "proj_out"])
    assert sorted([*selection.quantized, *selection.kept_float]) == sorted(names(toy))
    assert selection.kept_float == {
        "adaln_single.0": "*adaln_single*",
        "adaln_single.2": "*adaln_single*",
        "blocks.0.ff.net.2": "*net.2*",
        "blocks.1.ff.net.2": "*net.2*",
        "proj_out": "proj_out",
    }
    assert selection.quantized[:2] == ("pos_embed", "blocks.0.attn.to_q")  # the model's order


def test_include_restricts_and_exclude_wins(toy: nn.Module) -> None:
    selection = select(toy, ["blocks.*.attn.*"], ["blocks.1.*"])
    assert selection.quantized == tuple(f"blocks.0.attn.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0"))
    assert selection.kept_float["proj_out"] == "not in ['blocks.*.attn.*']"
    assert selection.kept_float["blocks.1.attn.to_q"] == "blocks.1.*"


def test_star_crosses_dots_and_case_counts(toy: nn.Module) -> None:
    assert len(select(toy, ["blocks*0"]).quantized) == 4  # to_out.0 and net.0 of both blocks
    with pytest.raises(ValueError, match="BLOCKS"):
        select(toy, ["BLOCKS.*"])
    with pytest.raises(ValueError, match="'attn' matches no linear"):  # a container does not stand for its children
        select(toy, ["*"], ["attn"])


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("*atn.to_q", "attn.to_q"), ("proj_outt", "proj_out"), ("*adaln_singel*", "adaln_single"), ("*net.7*", "net.")],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(toy: nn.Module, pattern: str, near: str) -> None:
    with pytest.raises(ValueError, match="matches no linear of ToyDiT; nearest: ") as error:
        select(toy, ["*"], [pattern])
    assert near in str(error.value).split("nearest: ")[1]


def test_linears_that_cannot_be_swapped_say_why() -> None:
    class Scaled(nn.Linear):
        def forward(self, x):  # noqa: ANN001, ANN202
            return 2 * super().forward(x)

    model = nn.ModuleDict({"own": Scaled(4, 4), "attention": nn.MultiheadAttention(4, 1), "plain": nn.Linear(4, 4)})
    selection = select(model)
    assert selection.quantized == ("plain",)
    assert selection.kept_float == {
        "own": "Scaled has a forward of its own",
        "attention.out_proj": "its parent uses the weight without calling the linear",
    }
