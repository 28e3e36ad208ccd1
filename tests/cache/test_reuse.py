"""Reuse on the declared blocks: what is computed, what comes out, and that nothing stays behind."""

import pytest
import torch
from cache.toy_blocks import sample, toy

from runner.cache.policy import Policy, Rectangle, Segment, Segments
from runner.cache.reuse import Reuse
from runner.generation.steps import Steps


def cached(pipeline, policy: Policy, joint: bool = True):
    with Steps(pipeline) as steps, Reuse(pipeline.transformer, steps, policy):
        return sample(pipeline, joint)


@torch.no_grad()
def by_hand(pipeline, policy: Policy):
    """The same in plain words, for blocks of one or two streams: keep the change of the range, add it later."""
    torch.manual_seed(0)
    x, texts = torch.randn(1, 5, 6), torch.randn(2, 3, 6)
    kept: list = [None, None]
    blocks = pipeline.transformer.blocks
    for step, t in enumerate(pipeline.scheduler.timesteps):
        outs = []
        for branch in range(2):
            streams, begun = (texts[branch][None], x), None
            for at, block in enumerate(blocks):
                for_later, now = policy.kept(step), policy.ranges[step]
                if for_later and at == for_later[0]:
                    begun = streams
                if now and now[0] <= at < now[1]:
                    if at == now[1] - 1:
                        streams = tuple(s + c for s, c in zip(streams, kept[branch], strict=True))
                else:
                    shift = torch.sin(t / 100)
                    if pipeline.transformer.streams == 1:
                        streams = (streams[0], block.forward(streams[1], shift))
                    else:
                        text, tokens = block.forward(streams[1], streams[0], shift)
                        streams = (streams[0] if text is None else text, tokens)
                if for_later and at == for_later[1] - 1:
                    kept[branch] = tuple(s - b for s, b in zip(streams, begun, strict=True))
            one = pipeline.transformer.streams == 1
            outs.append(streams[1] + texts[branch][None].mean() if one else streams[1])
        x = pipeline.scheduler.step(outs[0] + 3 * (outs[1] - outs[0]), t, x)[0]
    return x


POLICIES = {
    "middle": Rectangle(1, 3, 1, 2).policy(6, 4),
    "from block 0": Rectangle(0, 2, 0, 3).policy(6, 4),
    "one block": Rectangle(1, 2, 2, 1).policy(6, 4),
    "to the last": Rectangle(0, 3, 2, 2).policy(6, 4),
    "all": Rectangle(2, 2, 0, 4).policy(6, 4),
    "segments": Segments(6, (Segment(0, 2, 0, 2), Segment(3, 2, 3, 1))).policy(6, 4),
}


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_what_comes_out_is_what_the_words_say(name, streams, joint):
    pipeline, policy = toy(streams=streams), POLICIES[name]
    wanted = by_hand(pipeline, policy)
    torch.testing.assert_close(cached(pipeline, policy, joint), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(sample(pipeline), wanted)


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_reused_is_not_computed(name):
    pipeline = toy()
    cached(pipeline, POLICIES[name])
    for at, block in enumerate(pipeline.transformer.blocks):
        assert block.computed == sum(not POLICIES[name].reuses(at, step) for step in range(6))


@pytest.mark.parametrize("streams", [1, 2])
def test_nothing_stays_behind(streams):
    pipeline = toy(streams=streams)
    plain = sample(pipeline)
    blocks = list(pipeline.transformer.blocks)
    calls = []
    blocks[1].forward = lambda *a, _own=blocks[1].forward, **k: (calls.append(1), _own(*a, **k))[1]  # somebody else's
    before = [dict(vars(block)) for block in blocks]
    first, second = cached(pipeline, POLICIES["all"]), cached(pipeline, POLICIES["all"])
    assert torch.equal(first, second) and calls
    for block, was, now in zip(blocks, before, pipeline.transformer.blocks, strict=True):
        assert now is block
        kept = {name: value for name, value in vars(block).items() if name != "computed"}
        assert kept == {name: value for name, value in was.items() if name != "computed"}
        assert not block._forward_hooks and not block._forward_pre_hooks
    assert torch.equal(sample(pipeline), plain)


def test_a_failure_leaves_nothing_behind_either():
    pipeline = toy()
    plain = sample(pipeline)
    with (
        pytest.raises(RuntimeError, match="stop"),
        Steps(pipeline) as steps,
        Reuse(pipeline.transformer, steps, POLICIES["all"]),
    ):
        steps.after.append(lambda step: (_ for _ in ()).throw(RuntimeError("stop")) if step == 3 else None)
        sample(pipeline)
    assert torch.equal(sample(pipeline), plain)


@pytest.mark.parametrize("policy", [Rectangle(0, 2, 1, 0).policy(6, 4), Policy((None,) * 6)])
def test_no_blocks_are_no_reuse(policy):
    pipeline = toy()
    assert torch.equal(cached(pipeline, policy), sample(pipeline))
