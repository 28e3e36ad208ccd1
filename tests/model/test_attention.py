"""The one function through which attention goes: what takes its place sees every call, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from model.tiny import opensora12, osp12
from torch.overrides import TorchFunctionMode

import runner.model
from runner.model.attention import attention, attention_replaced
from runner.model.osp12 import OSP12VAE

RUNNER = Path(runner.model.__file__).parents[1]


TINY = {"osp12": osp12, "opensora12": opensora12}
ATTENTIONS = {
    "osp12": [f"transformer_blocks.{i}.{name}" for i in range(2) for name in ("attn1", "attn2")],
    "opensora12": [
        f"{kind}_blocks.{i}.{name}"
        for i in range(2)
        for kind in ("spatial", "temporal")
        for name in ("attn", "cross_attn")
    ],
}


class Counted(TorchFunctionMode):
    """Counts torch's own attention, wherever it is called from."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    return request.param, *TINY[request.param]()


@torch.inference_mode()
def run(model, call):
    return model(**call).sample


def test_a_replacement_sees_every_attention_of_a_forward(tiny):
    name, model, call = tiny
    seen = []

    def watched(module_name, module, attend):
        def watch(q, k, v, mask=None):
            assert q.shape[1] == k.shape[1] == v.shape[1] == module.heads
            seen.append(module_name)
            return attend(q, k, v, mask)

        return watch

    plain = run(model, call)
    with Counted() as counted, attention_replaced(model, watched) as names:
        assert torch.equal(run(model, call), plain)
    assert sorted(names) == sorted(seen) == sorted(ATTENTIONS[name])  # modules by definition, calls as they run
    assert seen == ATTENTIONS[name]
    assert counted.count == len(seen)  # no attention goes around it


def test_a_replacement_takes_effect_and_leaves_nothing_behind(tiny):
    _, model, call = tiny
    before = [dict(vars(module)) for module in model.modules()]
    plain, first = run(model, call), []

    def of_first(name, module, attend):
        first.append(name)
        return (lambda q, k, v, mask=None: torch.zeros_like(q)) if len(first) == 1 else None

    with pytest.raises(RuntimeError, match="in the middle"), attention_replaced(model, of_first) as names:
        assert names == first[:1]
        assert not torch.equal(run(model, call), plain)
        raise RuntimeError("in the middle")
    after = [dict(vars(module)) for module in model.modules()]
    assert [each.keys() for each in after] == [each.keys() for each in before]
    assert not any("attend" in each for each in after)
    assert torch.equal(run(model, call), plain)


def test_replacements_are_put_around_each_other(tiny):
    _, model, call = tiny
    order = []

    def called(label):
        def replace(name, module, attend):
            def attended(q, k, v, mask=None):
                order.append(label)
                return attend(q, k, v, mask)

            return attended

        return replace

    plain = run(model, call)
    with attention_replaced(model, called("outer")) as names:
        with attention_replaced(model, called("inner")):
            assert torch.equal(run(model, call), plain)
        assert order == ["inner", "outer"] * len(names)
        run(model, call)
        assert order[2 * len(names) :] == ["outer"] * len(names)


def test_one_that_fails_while_it_is_installed_leaves_nothing_behind(tiny):
    _, model, _ = tiny
    names = []

    def failing(name, module, attend):
        names.append(name)
        if len(names) == 3:
            raise ValueError("the third")
        return attend

    with pytest.raises(ValueError, match="the third"), attention_replaced(model, failing):
        pass
    assert not any("attend" in vars(module) for module in model.modules())


def test_dense_attention_is_torch_s_own():
    q, k, v = torch.randn(3, 2, 4, 10, 8, generator=torch.Generator().manual_seed(0))
    for mask in (None, torch.arange(10)[None] < 7, torch.linspace(-3, 0, 10)[None]):
        assert torch.equal(attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_the_autoencoder_s_attention_goes_there_too():
    with torch.device("meta"):
        vae = OSP12VAE()
    with attention_replaced(vae, lambda name, module, attend: attend) as names:
        assert names and all("attn" in name for name in names)


def test_no_other_module_calls_torch_s_attention():
    calling = [path for path in RUNNER.rglob("*.py") if "scaled_dot_product_attention" in path.read_text("utf-8")]
    assert calling == [RUNNER / "model/attention.py"]
