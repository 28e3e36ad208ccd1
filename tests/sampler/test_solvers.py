"""Schedulers that take any timesteps exactly, and noise along one path."""

import math

import pytest
import torch

from runner.sampler import SAMPLE_METHODS, SCHEDULED, exact, make_scheduler
from runner.sampler.path import WienerPath

OF_DIFFUSERS = [method for method in SCHEDULED if method in SAMPLE_METHODS]  # Open-Sora 1.2 has its own
SHAPE = (1, 4, 2, 3, 3)


def prediction(x, timestep):
    """A stand-in for a model that depends on what it gets."""
    return torch.sin(x) * 0.5 + 0.1 * float(timestep) / 1000


def sample(scheduler, start, seeds=(7,), generator=None):
    x = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        options = {"generator": generator} if generator else {}
        x = scheduler.step(prediction(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
    return x


@pytest.fixture
def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", OF_DIFFUSERS)
def test_without_timesteps_it_is_the_original_bit_for_bit(method, start):
    original, ours = make_scheduler(method), exact(make_scheduler(method))
    for scheduler in (original, ours):
        scheduler.set_timesteps(9)
    assert torch.equal(original.timesteps, ours.timesteps) and original.timesteps.dtype == ours.timesteps.dtype
    draws = (torch.Generator().manual_seed(3) if method == "EulerAncestralDiscrete" else None for _ in range(2))
    assert torch.equal(sample(original, start, generator=next(draws)), sample(ours, start, generator=next(draws)))


@pytest.mark.parametrize("method", OF_DIFFUSERS)
def test_the_original_s_own_timesteps_given_as_a_list_give_its_result(method, start):
    original, ours = make_scheduler(method), exact(make_scheduler(method))
    original.set_timesteps(20)
    ours.set_timesteps(timesteps=original.timesteps.tolist())
    draws = (torch.Generator().manual_seed(3) if method == "EulerAncestralDiscrete" else None for _ in range(2))
    expected, got = sample(original, start, generator=next(draws)), sample(ours, start, generator=next(draws))
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", OF_DIFFUSERS)
def test_fractional_timesteps_are_taken_as_they_are(method):
    scheduler = exact(make_scheduler(method))
    scheduler.set_timesteps(timesteps=[998.25, 500.5, 0.75])
    assert scheduler.timesteps.tolist() == [998.25, 500.5, 0.75]
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
    assert float(scheduler.sigmas[1]) == pytest.approx(float(levels[500] + levels[501]) / 2, rel=1e-6)
    assert float(scheduler.sigmas[3]) == 0
    scheduler.set_timesteps(5)  # and back
    assert len(scheduler.timesteps) == 5


def test_ddim_at_given_timesteps_is_eulers_method_in_other_coordinates(start):
    euler, ddim = exact(make_scheduler("EulerDiscrete")), exact(make_scheduler("DDIM"))
    for scheduler in (euler, ddim):
        scheduler.set_timesteps(timesteps=[990.5, 700.25, 300.125, 20.0])
    x = start * euler.init_noise_sigma
    y = x / math.sqrt(1 + float(euler.sigmas[0]) ** 2)
    for index, t in enumerate(euler.timesteps):
        scaled = euler.scale_model_input(x, t)
        assert torch.allclose(scaled, y, rtol=1e-4, atol=1e-5)
        x = euler.step(prediction(scaled, t), t, x).prev_sample
        y = ddim.step(prediction(y, ddim.timesteps[index]), ddim.timesteps[index], y).prev_sample
    assert torch.allclose(x, y, rtol=1e-4, atol=1e-5)


def test_timesteps_that_do_not_descend_are_refused():
    scheduler = exact(make_scheduler("DDIM"))
    for wrong in ([1.0, 2.0], [5.0, 5.0], []):
        with pytest.raises(ValueError, match="must descend"):
            scheduler.set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError, match="either"):
        scheduler.set_timesteps(5, timesteps=[2.0, 1.0])


def test_the_other_schedulers_stay_what_they_are():
    scheduler = make_scheduler("PNDM")
    assert exact(scheduler) is scheduler


# the path


def along(timesteps, seeds=(7,), steps=20, x0=None, start=None):
    """x after each step, with a model whose x0 prediction never changes."""
    scheduler = exact(make_scheduler("EulerAncestralDiscrete"))
    scheduler.follow_paths(list(seeds), steps)
    scheduler.set_timesteps(timesteps=timesteps)
    x, visited = start * scheduler.init_noise_sigma, []
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step((x - x0) / scheduler.sigmas[index], t, x).prev_sample
        visited.append(x)
    return visited


def recorded(steps=20):
    scheduler = make_scheduler("EulerAncestralDiscrete")
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def test_a_jump_equals_the_path(start):
    # In double precision: at sigma 157 the x0 of a float32 prediction is itself known to 1e-5 only.
    nodes, x0, start = recorded(), torch.linspace(-1, 1, start.numel()).reshape(SHAPE).double(), start.double()
    whole = dict(zip(nodes[1:], along(nodes, x0=x0, start=start), strict=False))
    for few in ([*nodes[::3], nodes[-1]], [nodes[0], nodes[11], nodes[-1]], [nodes[0], nodes[-1]]):
        for t, x in zip(few[1:], along(few, x0=x0, start=start), strict=False):
            assert float((x - whole[t]).abs().max() / whole[t].abs().max()) <= 1e-5


def test_without_the_path_it_does_not(start):
    nodes, ends = recorded(), []
    for chosen in (nodes, nodes[::3]):
        scheduler = exact(make_scheduler("EulerAncestralDiscrete"))
        scheduler.set_timesteps(timesteps=chosen)
        x, generator = start * scheduler.init_noise_sigma, torch.Generator().manual_seed(7)
        for index, t in enumerate(scheduler.timesteps[: chosen.index(nodes[9])]):
            x = scheduler.step(x / scheduler.sigmas[index], t, x, generator=generator).prev_sample
        ends.append(x)
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) > 0.5


def test_a_run_over_all_nodes_meets_the_reference_s_draws(start):
    seed = 7
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SHAPE, generator=generator)  # the initial latent, as the pipeline draws it
    reference, ours = make_scheduler("EulerAncestralDiscrete"), exact(make_scheduler("EulerAncestralDiscrete"))
    ours.follow_paths([seed], 20)
    for scheduler in (reference, ours):
        scheduler.set_timesteps(20)
    expected = sample(reference, noise, generator=generator)
    assert torch.allclose(sample(ours, noise), expected, rtol=1e-4, atol=1e-5)
    ours.follow_paths(None, 20)
    generator = torch.Generator().manual_seed(seed)
    torch.randn(SHAPE, generator=generator)
    ours.set_timesteps(20)
    assert torch.equal(sample(ours, noise, generator=generator), expected)


def test_between_nodes_it_is_the_same_whatever_else_was_asked():
    sigmas = [8.0, 4.0, 2.0, 1.0, 0.5]
    u = 1 / 3.0**2
    first = WienerPath(1, sigmas)
    for asked in (1 / 7.0**2, u, 1 / 0.9**2):
        value = first.value(asked, SHAPE, torch.float32)
        assert torch.equal(value, WienerPath(1, sigmas).value(asked, SHAPE, torch.float32))
    assert torch.equal(first.value(u, SHAPE, torch.float32), WienerPath(1, sigmas).value(u, SHAPE, torch.float32))
    assert not torch.equal(WienerPath(2, sigmas).value(u, SHAPE, torch.float32), first.value(u, SHAPE, torch.float32))


def test_between_nodes_its_increments_have_the_variance_of_a_wiener_process():
    path, shape = WienerPath(5, [8.0, 4.0, 2.0, 1.0]), (1, 20000)
    places = [path.nodes[1], path.nodes[1] * 1.37, path.nodes[1] * 2.9, path.nodes[2]]
    values = [path.value(u, shape, torch.float32) for u in places]
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    for (a, b), step in zip(zip(places, places[1:], strict=False), steps, strict=True):
        assert float(step.var()) == pytest.approx(b - a, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([s.flatten() for s in steps])).fill_diagonal_(0).abs().max())) < 0.03


def test_rows_of_a_batch_have_their_own_paths(start):
    nodes, two = recorded(8), torch.cat([start, start])
    scheduler = exact(make_scheduler("EulerAncestralDiscrete"))
    scheduler.follow_paths([1, 2], 8)
    scheduler.set_timesteps(timesteps=nodes)
    together = sample(scheduler, two)
    scheduler.follow_paths([2], 8)
    scheduler.set_timesteps(timesteps=nodes)
    assert torch.equal(together[1:], sample(scheduler, start))
    scheduler.set_timesteps(timesteps=nodes)
    with pytest.raises(ValueError, match="1 noise paths for a batch of 2"):
        sample(scheduler, two)
