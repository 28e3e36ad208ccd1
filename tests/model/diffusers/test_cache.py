"""Reuse of blocks on seven families: what it computes, what is recorded for its search, and that it leaves no trace."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from cache.by_hooks import attributes, by_hooks, entering, left
from model.diffusers.conftest import STEPS

from runner.cache.policy import Policy, Rectangle
from runner.cache.reuse import Reuse
from runner.generation.generate import generate
from runner.generation.steps import Steps
from runner.hardware import open_device
from runner.model import blocks
from runner.recording.movement import Boundaries, Movement, local_error

# What flows from block to block, in the order in which a block returns it.
STREAMS = dict.fromkeys(("pixart", "wan", "ltx"), ("hidden_states",))
STREAMS |= dict.fromkeys(("flux", "sd3"), ("encoder_hidden_states", "hidden_states"))
STREAMS |= dict.fromkeys(("cogvideox", "hunyuan"), ("hidden_states", "encoder_hidden_states"))


def latents(ran, steps=None):
    pipeline, config = ran.bench._pipeline, ran.config
    made = generate(pipeline, config, ["a red boat"], [5], open_device("cpu"), decode=False, steps=steps)
    return made.latents


def cached(ran, policy):
    with Steps(ran.bench._pipeline) as steps, Reuse(ran.bench._pipeline.transformer, steps, policy):
        return latents(ran, steps)


def test_what_comes_out_is_what_hooks_make_of_all_blocks(ran):
    pipeline = ran.bench._pipeline
    count, plain = len(blocks(pipeline)), latents(ran)
    for rectangle in (Rectangle(1, 3, 0, count), Rectangle(0, 2, count - 1, 1), Rectangle(1, 2, 0, count - 1)):
        policy = rectangle.policy(STEPS, count)
        with Steps(pipeline) as steps, by_hooks(pipeline, STREAMS[ran.name], policy, steps):
            wanted = latents(ran, steps)
        assert torch.equal(cached(ran, policy), wanted) and not torch.equal(wanted, plain), rectangle


def test_it_leaves_no_trace(ran):
    transformer = ran.bench._pipeline.transformer
    modules, before = dict(transformer.named_modules()), attributes(transformer)
    count, plain = len(blocks(ran.bench._pipeline)), latents(ran)
    computed = []
    inside = next(transformer.get_submodule(blocks(ran.bench._pipeline)[0]).children())
    hook = inside.register_forward_hook(lambda *_: computed.append(1))
    one, two = (cached(ran, Rectangle(1, 2, 0, count).policy(STEPS, count)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, plain)
    branches = 2 if ran.name == "wan" else 1
    assert len(computed) == 2 * branches * (STEPS - 1)  # one step of four reuses, twice
    hook.remove()
    assert attributes(transformer) == before
    assert all(module is modules[name] for name, module in transformer.named_modules())
    assert torch.equal(latents(ran), plain)


def test_what_is_recorded_is_how_the_streams_moved(ran, tmp_path: Path, monkeypatch):
    """Each step's local error of every range is what the streams say, guided as the solver's prediction is."""
    monkeypatch.setattr("runner.recording.movement.TOKENS", 1000)  # all of them
    pipeline, streams, held = ran.bench._pipeline, STREAMS[ran.name], []
    names = blocks(pipeline)
    calls: list[list] = []
    with Steps(pipeline) as steps, ExitStack() as stack:

        def note(at):
            def hook(block, args, kwargs, returned):
                if at == 0:
                    calls.append([entering(block, streams, args, kwargs)])
                last = calls[-1][-1]
                calls[-1].append([was if now is None else now for now, was in zip(left(returned), last, strict=True)])

            return hook

        for at, name in enumerate(names):
            module = pipeline.transformer.get_submodule(name)
            stack.callback(module.register_forward_hook(note(at), with_kwargs=True).remove)
        stack.enter_context(Boundaries(pipeline, steps, 2, tmp_path))
        steps.after.append(lambda _: (held.append(list(calls)), calls.clear()))
        latents(ran, steps)
    movement = Movement.read(tmp_path)
    rows = [
        torch.cat([flat(call) for call in step])  # [branches, boundaries, elements]
        for step in held
    ]
    assert movement.blocks == len(names) and movement.lags == 2 and len(movement.gram) == STEPS
    for t in range(1, STEPS):
        moved = torch.einsum("b,bie->ie", movement.weights[t], (rows[t] - rows[t - 1]).double())
        for s, e in ((0, 1), (0, len(names)), (len(names) - 1, len(names))):
            found, wanted = float(local_error(movement.guided()[t])[0][s, e]), (moved[e] - moved[s]).square().mean()
            assert found == pytest.approx(float(wanted.sqrt()), rel=1e-4)
    scale = ran.config["sampler"]["guidance_scale"]
    expected = [1.0] if ran.name in ("flux", "hunyuan") else [1 - scale, scale]
    assert sorted(movement.weights[1].tolist()) == pytest.approx(sorted(expected), rel=0.02)


def flat(call):
    """[branches, boundaries, elements] of one call: all streams side by side, float32."""
    columns = [torch.stack([value.flatten(1) for value in stream], 1) for stream in zip(*call, strict=True)]
    return torch.cat(columns, 2).float()


def test_the_search_is_counted_and_its_answer_is_applied(ran):
    found = json.loads((ran.folder / "search-cache/search.json").read_text())
    plan = {row["stage"]: row for row in json.loads((ran.folder / "plan.json").read_text())["stages"]}
    assert 0 < found["forwards"] <= plan["search-cache"]["forwards"] and plan["search-cache"]["at_most"]
    assert found["blocks"] == len(blocks(ran.bench._pipeline)) and found["steps"] == STEPS
    assert len(found["probes"]) >= 2 and found["verified"] and found["statement"]
    metrics = json.loads((ran.folder / "sample/metrics.json").read_text())
    file = ran.folder / "search-cache/cache_config.json"
    assert file.exists() == (found["answer"] is not None) == ("cache" in metrics)
    if found["answer"] is not None:
        written = json.loads(file.read_text())
        assert written == found["verified"][found["answer"]]["config"] == metrics["cache"]["config"]
        assert any(Policy(tuple(tuple(r) if r else None for r in metrics["cache"]["ranges"])).ranges)
