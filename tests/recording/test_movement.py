"""Gram matrices of movement against the movement itself."""

import pytest
import torch
from cache.toy_blocks import sample, toy

from runner.generation.steps import Steps
from runner.recording.movement import Boundaries, Movement, local_error

SCALE = 3.0


def recorded(tmp_path, pipeline, lags=3, joint=True) -> Movement:
    with Steps(pipeline) as steps, Boundaries(pipeline, steps, lags, tmp_path):
        sample(pipeline, joint)
    return Movement.read(tmp_path)


def boundaries(pipeline, joint=True):
    """By step and branch: the tokens at every boundary, by hooks of the test's own. [steps][branches, L+1, elements]"""
    rows: list[list[torch.Tensor]] = []
    blocks = pipeline.transformer.blocks

    def tokens(streams):
        return torch.cat([s.flatten(1) for s in streams], 1)

    def hook(at):
        def seen(_, args, kwargs, returned):
            if at == 0:
                given = (kwargs.get("encoder_hidden_states"), kwargs.get("hidden_states", args[0] if args else None))
                rows.append([tokens([s for s in given if s is not None])])
            values = returned if isinstance(returned, tuple) else (returned,)
            last = rows[-1][-1]
            whole = tokens([v for v in values if v is not None])
            if whole.shape != last.shape:  # a stream that ended has moved nowhere
                whole = torch.cat([last[:, : last.shape[1] - whole.shape[1]], whole], 1)
            rows[-1].append(whole)

        return seen

    hooks = [block.register_forward_hook(hook(at), with_kwargs=True) for at, block in enumerate(blocks)]
    sample(pipeline, joint)
    for each in hooks:
        each.remove()
    calls = [torch.stack(row, 1) for row in rows]
    return calls if joint else [torch.cat(calls[i : i + 2]) for i in range(0, len(calls), 2)]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("joint", [True, False])
def test_local_errors_are_those_of_the_tensors(tmp_path, streams, joint):
    pipeline = toy(streams=streams)
    movement, h = recorded(tmp_path, pipeline, joint=joint), boundaries(pipeline, joint)
    assert (movement.blocks, movement.lags, len(movement.gram)) == (4, 3, 6)
    for step, matrices in enumerate(movement.guided()):
        for lag in range(1, min(step, 3) + 1):
            moved = (h[step] - h[step - lag]).double()
            guided = SCALE * moved[1] - (SCALE - 1) * moved[0]
            for s in range(5):
                for e in range(5):
                    wanted = (guided[e] - guided[s]).square().mean().sqrt()
                    torch.testing.assert_close(local_error(matrices[lag - 1])[s, e], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
def test_the_weights_of_guidance_are_those_that_the_pipeline_takes(tmp_path, joint):
    for weights in recorded(tmp_path, toy(), joint=joint).weights[1:]:
        torch.testing.assert_close(weights, torch.tensor([1 - SCALE, SCALE], dtype=torch.float64), rtol=1e-4, atol=0)


def test_branches_alone_miss_what_they_have_in_common(tmp_path):
    movement = recorded(tmp_path, toy())
    one, other = ([torch.tensor(each, dtype=torch.float64)] * len(movement.gram) for each in ([0, 1], [1, 0]))
    apart = [SCALE**2 * c + (SCALE - 1) ** 2 * u for c, u in zip(movement.matrices(one), movement.matrices(other),
                                                              strict=True) if c.numel()]  # fmt: skip
    assert not torch.allclose(apart[-1], movement.guided()[-1], rtol=0.1)


def test_memory_and_files_do_not_grow_with_the_steps(tmp_path):
    pipeline = toy(steps=9)
    with Steps(pipeline) as steps, Boundaries(pipeline, steps, 2, tmp_path) as kept:
        sample(pipeline)
        assert len(kept._past) == 2
    assert [g.shape[0] for g in Movement.read(tmp_path).gram] == [0, 1, *[2] * 7]


def test_hooks_change_nothing_and_go(tmp_path):
    pipeline = toy(streams=2)
    plain = sample(pipeline)
    with Steps(pipeline) as steps, Boundaries(pipeline, steps, 2, tmp_path):
        assert torch.equal(sample(pipeline), plain)
    assert not any(block._forward_hooks for block in pipeline.transformer.blocks)
