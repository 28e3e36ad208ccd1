"""What of the tokens' movement is counted, on movements that are known."""

import numpy as np
import pytest
import torch

from runner.cache import predict
from runner.cache.policy import Policy, Rectangle
from runner.cache.predict import Prediction, Transfers, transferred
from runner.cache.speed import Times
from runner.recording.movement import local_error

BLOCKS = 4


@pytest.fixture
def changes() -> torch.Tensor:
    """How far what each block changes has moved, [L, elements]."""
    return torch.randn(BLOCKS, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gram(changes: torch.Tensor) -> torch.Tensor:
    first = torch.randn(1, changes.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = torch.cat([first, changes]).cumsum(0)
    return moved @ moved.T


def test_where_every_block_counts_alike_the_errors_are_those_of_the_tokens(changes, monkeypatch):
    monkeypatch.setattr(predict, "COMMON", 1.0)
    seen = local_error(transferred(gram(changes), np.ones(BLOCKS)))
    torch.testing.assert_close(seen.triu(), local_error(gram(changes)).triu())


def test_each_block_counts_by_its_transfer(changes):
    transfers = np.array([1.0, 0.0, 2.0, 3.0])
    seen = local_error(transferred(gram(changes), transfers))
    for block in range(BLOCKS):
        torch.testing.assert_close(seen[block, block + 1], transfers[block] * changes[block].norm())
    assert seen[1, 2] == 0 and seen[0, 2] == pytest.approx(float(changes[0].norm()))
    together = (2 * changes[2] + 3 * changes[3]).norm() ** 2
    apart = (2 * changes[2]).norm() ** 2 + (3 * changes[3]).norm() ** 2
    expected = (predict.COMMON * together + (1 - predict.COMMON) * apart).sqrt()
    torch.testing.assert_close(seen[2, 4], expected)


def test_a_range_counts_for_more_the_fewer_blocks_are_computed_after_it():
    transfers = Transfers(np.ones(4), np.array([16.0, 4.0, 2.0, 1.0]), np.array([1, 2, 3, 4]))
    factors = transfers.factors()
    for block in range(4):
        assert factors[block, block + 1] == 1 and factors[block, 4] == pytest.approx(transfers.together[block])
    assert factors[0, 2] == pytest.approx(16 ** (1 / 3)) and factors[1, 3] == pytest.approx(2)


def test_blocks_that_were_probed_as_one_count_as_one():
    factors = Transfers(np.ones(4), np.array([4.0, 4.0, 1.0, 1.0]), np.array([2, 2, 4, 4])).factors()
    assert factors[0, 1] == factors[0, 2] == factors[1, 2] == 1 == factors[2, 3] == factors[2, 4]
    assert factors[0, 3] == pytest.approx(2) and factors[1, 4] == pytest.approx(4)


def test_errors_of_a_period_add_and_those_of_periods_add_as_squares():
    costs = np.arange(1.0, 9.0)[:, None, None, None] * np.ones((8, 3, 2, 2))
    prediction = Prediction(costs, Times(1.0, (0.5,)))
    assert prediction.damage(Rectangle(1, 3, 0, 1).policy(8, 1)) == pytest.approx(np.hypot(3 + 4, 6 + 7))
    assert prediction.damage(Policy((None, *[(0, 1)] * 4, None, None, None))) == np.inf  # further than was recorded
    rectangles = list(prediction.rectangles())
    assert len(rectangles) > 1
    for rectangle, damage, speedup in rectangles:
        policy = rectangle.policy(8, 1)
        assert (damage, speedup) == pytest.approx((prediction.damage(policy), prediction.times.speedup(policy)))
