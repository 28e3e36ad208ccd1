"""Ancestral noise as one seeded Wiener path, so that every schedule of one seed meets the same noise.

In u = 1/sigma^2 the ancestral step from s_i to s_j adds s_j^2 (W(1/s_j^2) - W(1/s_i^2)): for a fixed x0, (x - x0)/s^2
is a Wiener path whose increments are the noise. A jump over several steps so adds exactly their noises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

DEPTH = 14  # halvings of the span between two nodes; what lies between is linear
SAME = 1e-6  # relative distance in u below which a place is a node


class WienerPath:
    """W(u) of one latent, walked upwards.

    At the nodes 1/s^2 (s: `sigmas`, descending, positive) W is the running sum of what a generator with this seed gives
    a run over all of them: first the initial latent, which is not part of the path, then one draw a step. Between nodes
    a Brownian bridge is halved DEPTH times, each middle from a seed of its own, so W(u) is a function of (seed, u)
    alone, whatever else was asked. Before the first node W is 0; after the last one it stays.
    """

    def __init__(self, seed: int, sigmas: Sequence[float]) -> None:
        self.seed, self.nodes = seed, [sigma**-2.0 for sigma in sigmas]
        if any(b <= a for a, b in zip(self.nodes, self.nodes[1:], strict=False)):
            raise ValueError(f"the path's sigmas must descend: got {list(sigmas)}")
        self._node = -1  # the last node passed; -1: nothing drawn yet

    def value(self, u: float, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """W(u), float32 [*shape], on the host; draws are made in `dtype`, as the reference makes them."""
        if self._node < 0 or u < self.nodes[self._node] * (1 - SAME):
            self._generator = torch.Generator("cpu").manual_seed(self.seed)
            randn_tensor(tuple(shape), generator=self._generator, dtype=dtype)  # the initial latent
            self._node, self._here = 0, torch.zeros(tuple(shape))
            self._draw(dtype)
        while self._node + 1 < len(self.nodes) and u >= self.nodes[self._node + 1] * (1 - SAME):
            self._node, self._here = self._node + 1, self._next
            self._draw(dtype)
        if self._node + 1 == len(self.nodes) or u <= self.nodes[self._node] * (1 + SAME):
            return self._here
        return self._bridge(u, dtype)

    def _draw(self, dtype: torch.dtype) -> None:
        """The value at the next node, if there is one."""
        if self._node + 1 < len(self.nodes):
            span = self.nodes[self._node + 1] - self.nodes[self._node]
            noise = randn_tensor(tuple(self._here.shape), generator=self._generator, dtype=dtype)
            self._next = self._here + span**0.5 * noise.float()

    def _bridge(self, u: float, dtype: torch.dtype) -> Tensor:
        low, high = self.nodes[self._node], self.nodes[self._node + 1]
        below, above, place = self._here, self._next, 1
        for _ in range(DEPTH):
            name = f"{self.seed} {self._node} {place}".encode()
            generator = torch.Generator("cpu").manual_seed(
                int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
            )
            noise = torch.empty(tuple(below.shape)).normal_(generator=generator)  # float32, whatever `dtype`
            middle = (low + high) / 2
            value = (below + above) / 2 + ((high - low) / 4) ** 0.5 * noise
            if abs(u - middle) <= SAME * (high - low):
                return value
            if u < middle:
                high, above, place = middle, value, 2 * place
            else:
                low, below, place = middle, value, 2 * place + 1
        return below + (u - low) / (high - low) * (above - below)
