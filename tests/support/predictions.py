"""What reusing blocks would cost, drawn by chance."""

import itertools
import math

import numpy as np

from runner.cache.predict import Prediction
from runner.cache.speed import Times


def prediction(steps: int, blocks: int, lags: int, seed: int = 0) -> Prediction:
    dice = np.random.default_rng(seed)
    costs = dice.uniform(0.1, 1, (steps, lags, blocks + 1, blocks + 1)).cumsum(1)
    for step, lag in itertools.product(range(steps), range(lags)):
        if lag >= step:
            costs[step, lag] = math.inf
    return Prediction(costs, Times(1.0, tuple(dice.uniform(0.5, 1, blocks) / (blocks + 1))))
