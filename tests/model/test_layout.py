"""What a layout says is what a forward does: names, heads, kinds and tokens against the attention that really runs."""

import inspect
import math
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.nn.functional as F
from model.diffusers.tiny import PIPELINES
from model.tiny import opensora12, osp12
from torch import nn
from torch.overrides import TorchFunctionMode

import runner.model
from runner.model import blocks, layout_of
from runner.model.attention import attention_replaced
from runner.model.layout import TOKENS

TEXT = "encoder_hidden_states"
ROOMS = sorted(path.parent.name for path in Path(runner.model.__file__).parent.glob("*/layout.py"))


def foreign(name):
    """A tiny transformer of diffusers, and the call that its own pipeline makes of it."""
    torch.manual_seed(0)
    build, sizes = PIPELINES[name]
    pipeline, calls = build(), []
    pipeline.set_progress_bar_config(disable=True)
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    pipeline("a red boat", num_inference_steps=1, output_type="latent", **sizes)
    hook.remove()
    return pipeline.transformer.eval(), calls[0]


@contextmanager
def attended_of_ours(model, found):
    """Collects (module, q's shape, k's shape) of each attention: those of models written here, by their own seam."""

    def replace(name, module, attend):
        def attended(q, k, v, mask=None):
            found.append((name, q.shape, k.shape))
            return attend(q, k, v, mask)

        return attended

    with attention_replaced(model, replace):
        yield


@contextmanager
def attended_of_others(model, found):
    """Those of diffusers, by torch's own function and the attention module that is running."""
    running, hooks = [], []
    for name, module in model.named_modules():
        if hasattr(module, "to_q"):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))

    class Watched(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                given = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
                found.append((running[-1], given["query"].shape, given["key"].shape))
            return func(*args, **(kwargs or {}))

    with Watched():
        yield
    for hook in hooks:
        hook.remove()


MADE = {
    "osp12": (osp12, attended_of_ours),
    "opensora12": (opensora12, attended_of_ours),
    **{name: (lambda name=name: foreign(name), attended_of_others) for name in ("sd3", "wan", "flux", "cogvideox")},
}
KINDS = {  # by model: kinds in running order, by block; the order of tokens where attention is joint
    "osp12": ({"transformer_blocks.0": ["self", "cross"]}, None),
    "opensora12": ({"spatial_blocks.0": ["space", "cross"], "temporal_blocks.1": ["time", "cross"]}, None),
    "sd3": ({"transformer_blocks.2": ["joint"]}, (TOKENS, TEXT)),
    "wan": ({"blocks.1": ["self", "cross"]}, None),
    "flux": ({"transformer_blocks.0": ["joint"], "single_transformer_blocks.1": ["joint"]}, (TEXT, TOKENS)),
    "cogvideox": ({"transformer_blocks.1": ["joint"]}, (TEXT, TOKENS)),
}
STREAMS = {"sd3": (TEXT, TOKENS), "flux": (TEXT, TOKENS), "cogvideox": (TOKENS, TEXT)}
CUT = {  # modules and arguments whose tensors are cut; None where it is not told
    "osp12": {("transformer_blocks.0", TOKENS), ("transformer_blocks.*", "rotary")},
    "opensora12": {
        ("spatial_blocks.0", TOKENS), ("spatial_blocks.*", "modulation"), ("temporal_blocks.*", "modulation"),
    },
    "wan": {("rope", 0), ("rope", 1), ("blocks.0", TOKENS), ("", "timestep")},
    "flux": {("", TOKENS), ("", TEXT), ("", "img_ids"), ("", "txt_ids")},
    "sd3": None,
    "cogvideox": None,
}  # fmt: skip


@pytest.fixture(scope="module", params=MADE)
def made(request):
    """Name, transformer, call, layout, and what its attentions saw in a forward."""
    make, attended = MADE[request.param]
    transformer, call = make()
    found = []
    with torch.inference_mode(), attended(transformer, found):
        transformer(**call)
    return SimpleNamespace(
        name=request.param, transformer=transformer, call=call, layout=layout_of(transformer), found=found
    )


def test_every_room_has_a_layout():
    assert {"diffusers", "opensora12", "osp12", "sd3"} == set(ROOMS)
    assert all(callable(import_module(f"runner.model.{room}.layout").layout) for room in ROOMS)


def test_names_are_modules_of_the_transformer_in_running_order(made):
    layout, modules = made.layout, dict(made.transformer.named_modules())
    assert [block.module for block in layout.blocks] == blocks(SimpleNamespace(transformer=made.transformer))
    assert {block.module for block in layout.blocks} <= modules.keys()
    assert all(isinstance(modules[name], nn.ModuleList) for entry in layout.lists for name in entry)
    assert [name for name, *_ in made.found] == [one.module for one in layout.attentions]
    parted = [one for block in layout.blocks for one in layout.attentions_of(block.module)]
    assert tuple(parted) == layout.attentions


def test_heads_are_those_of_the_weights_and_of_the_forward(made):
    modules = dict(made.transformer.named_modules())
    for one, (_, q, k) in zip(made.layout.attentions, made.found, strict=True):
        assert (q[1], q[3]) == (one.heads, one.head_size) and k[1] == one.heads
        module = modules[one.module]
        names = {"to_q": 1, "qkv": 3, "q_linear": 1}  # rows are those of so many of q, k and v
        (linear,) = [(getattr(module, name), many) for name, many in names.items() if hasattr(module, name)]
        assert linear[0].weight.shape[0] == linear[1] * one.heads * one.head_size


def test_kinds_and_streams(made):
    kinds, order = KINDS[made.name]
    for block, expected in kinds.items():
        assert [one.kind for one in made.layout.attentions_of(block)] == expected
    assert {one.queries for one in made.layout.attentions if one.kind == "joint"} == ({order} if order else set())
    assert {block.streams for block in made.layout.blocks} == {STREAMS.get(made.name, (TOKENS,))}


def test_the_grid_is_the_sequence_that_attention_sees(made):
    frames, height, width = made.layout.grid(made.call)
    tokens, batch = math.prod((frames, height, width)), len(made.call.get("hidden_states", made.call.get("x")))
    text = {
        k[2] if one.kind == "cross" else k[2] - tokens
        for one, (_, _, k) in zip(made.layout.attentions, made.found, strict=True)
        if one.kind in ("cross", "joint")
    }
    assert len(text) == 1 and min(text) > 0  # text tokens, the same in all blocks
    for one, (_, q, k) in zip(made.layout.attentions, made.found, strict=True):
        expected = {
            "self": (batch, tokens, tokens),
            "space": (batch * frames, height * width, height * width),
            "time": (batch * height * width, frames, frames),
            "cross": (batch, tokens, min(text)),
            "joint": (batch, tokens + min(text), tokens + min(text)),
        }
        assert (q[0], q[2], k[2]) == expected[one.kind], one


def test_each_axis_of_the_grid_is_its_own(made):
    """With three sides that differ, where the latents tell them."""
    latents = {"osp12": (1, 4, 3, 8, 12), "opensora12": (1, 4, 3, 7, 12), "wan": (1, 16, 3, 8, 12)}
    latents |= {"cogvideox": (1, 3, 4, 8, 12), "sd3": (1, 4, 8, 12)}
    if made.name == "flux":
        ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(6.0))
        assert made.layout.grid({"img_ids": ids}) == (1, 4, 6)
        assert made.layout.grid({"img_ids": ids[:-1]}) is None
        return
    name = "x" if made.name == "opensora12" else "hidden_states"
    grid = made.layout.grid({name: torch.empty(latents[made.name], device="meta")})
    assert grid == (1 if made.name == "sd3" else 3, 4, 6)


def test_cuts_name_what_is_there(made):
    cuts, expected = made.layout.cuts, CUT[made.name]
    assert (None if cuts is None else {(cut.module, cut.argument) for cut in cuts}) == expected
    modules = dict(made.transformer.named_modules())
    for cut in cuts or ():
        module = modules[cut.module.replace("*", "0")]
        assert isinstance(cut.argument, int) or cut.argument in type(module).forward.__annotations__


def test_a_cut_is_along_the_tokens(made):
    """In a forward, the tensors that go into the blocks have so many there, or one where all have the same."""
    if made.layout.cuts is None:
        return
    frames, height, width = made.layout.grid(made.call)
    modules, seen, hooks = dict(made.transformer.named_modules()), {}, []

    def keep(cut):
        def hook(module, args, kwargs):
            given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
            seen[cut] = given[cut.argument]

        return hook

    for cut in (cut for cut in made.layout.cuts if isinstance(cut.argument, str)):
        module = modules[cut.module.replace("*", "0")]
        hooks.append(module.register_forward_pre_hook(keep(cut), with_kwargs=True))
    with torch.inference_mode():
        made.transformer(**made.call)
    for hook in hooks:
        hook.remove()
    assert seen
    for cut, value in seen.items():
        for tensor in value if isinstance(value, tuple) else (value,):
            if cut.dims in (None, tensor.ndim) and cut.argument in (TOKENS, "rotary", "img_ids"):
                assert tensor.shape[cut.dim] == frames * height * width, cut
            elif cut.argument == "modulation":
                assert tensor.shape[cut.dim] in (1, frames)


def test_what_is_not_told_is_none():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.inner_dim, self.to_q = 2, 8, nn.Linear(8, 8)

        def forward(self, x):
            return self.to_q(x) + 1

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Strange()

        def forward(self, x):
            return self.attn(x) + x

    class Model(nn.Module):
        _repeated_blocks = ["Block"]

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block()])

        def forward(self, hidden_states):
            return self.layers[0](hidden_states)

    layout = layout_of(Model())
    assert layout.blocks[0].streams is None and layout.cuts is None
    (one,) = layout.attentions
    assert (one.module, one.heads, one.head_size, one.kind, one.queries) == ("layers.0.attn", 2, 4, None, None)
    assert layout.grid({"hidden_states": torch.zeros(1, 4, 8)}) is None
    assert layout.grid({}) is None


def test_which_axis_is_whose_is_not_guessed():
    with torch.device("meta"):
        latte = diffusers.LatteTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, cross_attention_dim=16,
            caption_channels=16, sample_size=8, patch_size=2, video_length=3, norm_type="ada_norm_single",
        )  # fmt: skip
    layout = layout_of(latte)
    assert layout.lists == (("transformer_blocks",), ("temporal_transformer_blocks",))
    assert {one.kind for one in layout.attentions} <= {None, "cross"}
