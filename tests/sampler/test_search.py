"""What becomes of an error, and which schedules are tried, with a made-up model in the recorded one's place."""

from types import SimpleNamespace

import pytest
import torch

from runner.sampler import exact, make_scheduler, probes
from runner.sampler.search import Gain, Trajectories, Walked, candidates, choose, gains_of_all, measure_gains

SHAPE = (1, 4, 2, 3, 3)


def recorded(method="EulerDiscrete", steps=20, prompts=2):
    scheduler = exact(make_scheduler(method))
    scheduler.set_timesteps(steps)
    runs = Trajectories(method, scheduler)
    for prompt in range(prompts):
        generator = torch.Generator().manual_seed(prompt)
        taken = [
            SimpleNamespace(
                timestep=float(t),
                latents=torch.randn(SHAPE, generator=generator),
                prediction=torch.randn(SHAPE, generator=generator),
            )
            for t in scheduler.timesteps
        ]
        runs.add(taken, torch.randn(SHAPE, generator=generator))
    return runs


def test_a_gain_is_the_share_of_an_error_that_is_left():
    runs, forwards, asked = recorded(), 0, []

    def walk(prompt, timesteps, latents=None):
        """A model under which a third of what is added at any node is left."""
        nonlocal forwards
        forwards += len(timesteps)
        asked.append((prompt, len(timesteps)))
        states, result = [torch.zeros(SHAPE, dtype=torch.float64) for _ in timesteps], torch.ones(SHAPE).double()
        if latents is None:
            return Walked(timesteps, states, result)
        return Walked(timesteps, [latents.double(), *states[1:]], result + latents.double() / 3)

    found = measure_gains(runs, walk)
    nodes, places = probes.coarse(20), probes.places(20)
    assert [gain.node for gain in found] == [nodes[place] for place in places] and len(places) == 3
    assert [gain.prompt for gain in found] == [0, 1, 0] and all(gain.size > 0 for gain in found)
    assert [gain.gain for gain in found] == pytest.approx([1 / 3] * 3, rel=1e-5)
    assert forwards == probes.evaluations(20, 2)
    after = [(number % 2, len(nodes) - place) for number, place in enumerate(places)]
    assert sorted(asked) == sorted([(0, len(nodes)), (1, len(nodes)), *after])


def test_between_measured_nodes_the_logarithm_of_the_gain_is_linear():
    gains = gains_of_all([Gain(4, 0, 1.0, 0.01), Gain(8, 1, 1.0, 1.0)], 12)
    assert len(gains) == 13
    assert gains[:5] == pytest.approx([0.01] * 5) and gains[6] == pytest.approx(0.1) and gains[8:] == [1.0] * 5
    assert gains_of_all([], 3) == [1.0] * 4


@pytest.mark.parametrize(
    ("method", "count", "names"),
    [
        ("DDIM", 4, ["errors as they point", "errors are independent"]),
        ("EulerDiscrete", 3, ["errors as they point"]),  # both ways lead to one schedule, which is tried once
    ],
)
def test_different_schedules_are_tried_the_best_on_paper_first(method, count, names):
    runs = recorded(method)
    gains = [1.0] * 21
    found, jumps = candidates(runs, gains, count), runs.jumps(gains)
    assert [each.name for each in found] == names and len(names) < probes.TRIED
    places = [[runs.timesteps.index(timestep) for timestep in each.timesteps] for each in found]
    assert all(nodes[0] == 0 and nodes == sorted(set(nodes)) and len(nodes) == count for nodes in places)
    damages = [jumps.damage(nodes) for nodes in places]
    assert [each.predicted for each in found] == pytest.approx(damages)
    assert all(better < worse for better, worse in zip(damages, damages[1:], strict=False))
    assert damages[0] < jumps.damage(list(range(0, 20, 20 // count))[:count])  # evenly spread


def test_prompts_recorded_over_other_steps_are_an_error():
    runs = recorded()
    step = SimpleNamespace(timestep=3.0, latents=torch.zeros(SHAPE), prediction=torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="same timesteps"):
        runs.add([step], torch.zeros(SHAPE))


def test_the_order_on_paper_holds_unless_a_trial_speaks_against_it():
    assert choose([0.19, 0.3, 0.1]) == 0
    assert choose([0.21, 0.15, 0.1]) == 1
    assert choose([0.21, 0.25, 0.1]) == 2
    assert choose([0.0]) == 0
