"""Dynamic programming against all schedules there are."""

import itertools

import pytest
import torch

from runner.sampler.dynamic import exchange, shortest
from runner.sampler.jumps import Jumps, gram

N = 9


def jumps(family, seed=0):
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randn(N, 40, generator=generator, dtype=torch.float64).cumsum(0)
    gains = torch.rand(N + 1, generator=generator, dtype=torch.float64) + 0.1
    gains[-1] = 1
    sigmas = [80 * 0.5**n for n in range(N)]
    return Jumps(sigmas, gram(predictions), gains, family)


def cost(jumps, nodes, power):
    stops = [*nodes, N]
    return sum(float(jumps.size(jumps.part(stops, k))) ** power for k in range(len(nodes)))


@pytest.mark.parametrize("family", ["ancestral", "euler", "multistep"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_it_is_the_best_of_all(family, power, count):
    some = jumps(family)
    every = [[0, *rest] for rest in itertools.combinations(range(1, N), count - 1)]
    best = min(cost(some, nodes, power) for nodes in every)
    found = shortest(some, count, power)
    assert found in every and cost(some, found, power) == pytest.approx(best, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("family", ["ancestral", "euler", "multistep"])
def test_exchange_ends_where_no_single_move_helps(family):
    some = jumps(family, seed=3)
    found = exchange(some, [0, 1, 2, 3])
    assert found[0] == 0 and found == sorted(set(found)) and len(found) == 4
    assert some.damage(found) < some.damage([0, 1, 2, 3])
    for place, j in itertools.product(range(1, 4), range(1, N)):
        others = found[:place] + found[place + 1 :]
        if j not in others:
            assert some.damage(sorted([*others, j])) >= some.damage(found) * (1 - 1e-3)


def test_more_steps_than_were_recorded_are_refused():
    for count in (0, N + 1):
        with pytest.raises(ValueError, match="cannot be chosen"):
            shortest(jumps("euler"), count, 1)
