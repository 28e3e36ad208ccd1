"""Errors of jumps against solvers that really jump: with recorded predictions in the model's place they must agree."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from runner.model.opensora12.scheduler import RFlowScheduler
from runner.sampler import SCHEDULED, exact, make_scheduler
from runner.sampler.jumps import Jumps, gram, scale, x0_of
from runner.sampler.methods import FLOWS, SOLVERS
from runner.sampler.solvers import sigmas_at

N, SHAPE = 12, (1, 4, 2, 3, 3)


def world(method):
    """Timesteps, sigmas and x0 predictions [N, elements] of a run that is made up: any predictions do."""
    timesteps = [float(t) for t in range(960, 0, -80)]
    if method in FLOWS:
        shifted = exact(FlowMatchEulerDiscreteScheduler(shift=3.0))  # which has no effect on given timesteps
        scheduler, timesteps[0] = RFlowScheduler() if method == "RFLOW" else shifted, 1000.0
        sigmas = [t / (1000 - t) if t < 1000 else math.inf for t in timesteps]
    else:
        scheduler = exact(make_scheduler(method))
        sigmas = [float(s) for s in sigmas_at(scheduler.alphas_cumprod, timesteps)]
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(N, math.prod(SHAPE), generator=generator, dtype=torch.float64).cumsum(0)
    return scheduler, timesteps, sigmas, steps


def walk(method, nodes):
    """States x0 + sigma noise after each step over these nodes, the model's x0 being the recorded one of the node."""
    scheduler, timesteps, sigmas, predictions = world(method)
    if method == "EulerAncestralDiscrete":
        scheduler.set_timesteps(timesteps=timesteps)
        levels = scheduler.sigmas[:-1].tolist()
        scheduler.follow_paths([7], 5)
        scheduler.paths[0].nodes = [s**-2.0 for s in levels]
    scheduler.set_timesteps(timesteps=[timesteps[n] for n in nodes])
    space, states = SOLVERS[method].space, {}
    first = sigmas[nodes[0]]
    x = torch.ones(SHAPE, dtype=torch.float64) * (1.0 if math.isinf(first) else first * scale(space, first))
    for place, node in enumerate(nodes):
        x0 = predictions[node].reshape(SHAPE)
        if space == "flow":
            output = (x0 - x) / (timesteps[node] / 1000) * (1 if method == "RFLOW" else -1)
        else:
            output = (x / scale(space, sigmas[node]) - x0) / sigmas[node]
        x = scheduler.step(output, scheduler.timesteps[place], x).prev_sample.double()
        after = nodes[place + 1] if place + 1 < len(nodes) else N
        states[after] = x / (scale(space, sigmas[after]) if after < N else 1.0)
    return states


@pytest.mark.parametrize("method", SCHEDULED)
def test_the_error_of_a_schedule_is_the_solvers_own(method):
    """With predictions that do not depend on the state, an error at a node is carried on by the factor v_i / v_j, and
    the last step forgets it: so the sum of carried errors must be the difference of the two runs."""
    _, _, sigmas, predictions = world(method)
    jumps = Jumps(sigmas, gram(predictions), torch.ones(N + 1, dtype=torch.float64), SOLVERS[method].family)
    whole = walk(method, list(range(N)))
    for stop in (4, 7, N):
        nodes = [0, 3] if stop == 4 else [0, 1, 3, 5] if stop == 7 else [0, 2, 3, 8]
        some = walk(method, [*nodes, *([stop] if stop < N else [])])
        power = 2 if SOLVERS[method].family == "ancestral" else 1
        stops, expected = [*nodes, stop], torch.zeros(SHAPE, dtype=torch.float64)
        for k, (i, j) in enumerate(zip(stops, stops[1:], strict=False)):
            kept = 0.0 if j == N else (sigmas[j] / sigmas[i]) ** power
            own = jumps.weights(i, j, stops[k - 1] if k else None) @ predictions
            expected = kept * expected + own.reshape(SHAPE)
        got = some[stop] - whole[stop]
        assert float((got - expected).norm() / got.norm()) < 2e-4, (method, stop)


def test_sizes_are_norms_and_damage_adds_what_points_alike():
    _, _, sigmas, predictions = world("EulerDiscrete")
    gains = torch.linspace(0.1, 1, N + 1, dtype=torch.float64)
    jumps = Jumps(sigmas, gram(predictions), gains, "euler")
    rows = jumps.table[2, 5:8]
    assert torch.allclose(jumps.size(rows), (rows @ predictions).norm(dim=1), rtol=1e-9)
    whole = sum(gains[j] * (jumps.table[i, j] @ predictions) for i, j in ((0, 4), (4, 9), (9, N)))
    assert jumps.damage([0, 4, 9]) == pytest.approx(float(whole.norm()), rel=1e-9)
    assert jumps.damage(list(range(N))) == pytest.approx(0, abs=1e-6)


def test_gram_in_parts_is_gram():
    flat = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gram(flat, columns=7), flat.double() @ flat.double().T, rtol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("space", ["preserving", "exploding"])
def test_x0_of_what_a_model_predicts(kind, space):
    x0, noise, sigma = torch.tensor([0.3, -2.0]), torch.tensor([1.5, 0.25]), 3.0
    alpha = (1 + sigma**2) ** -0.5
    latents = (x0 + sigma * noise) * (alpha if space == "preserving" else 1)
    prediction = {"epsilon": noise, "v_prediction": alpha * noise - sigma * alpha * x0, "sample": x0}[kind]
    assert torch.allclose(x0_of(latents, prediction, sigma, kind, space), x0, atol=1e-5)
    with pytest.raises(ValueError, match="expected epsilon"):
        x0_of(latents, prediction, sigma, "flow", space)


@pytest.mark.parametrize("t", [1.0, 0.4])
def test_x0_of_a_velocity(t):
    x0, noise = torch.tensor([0.3, -2.0]), torch.tensor([1.5, 0.25])
    sigma = t / (1 - t) if t < 1 else math.inf
    latents = (1 - t) * x0 + t * noise
    assert torch.allclose(x0_of(latents, x0 - noise, sigma, "velocity", "flow"), x0, atol=1e-6)
    assert torch.allclose(x0_of(latents, noise - x0, sigma, "flow_prediction", "flow"), x0, atol=1e-6)
    assert scale("flow", sigma) == pytest.approx(1 - t)
