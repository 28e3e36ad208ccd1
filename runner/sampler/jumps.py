"""What a jump over recorded steps costs, from the recording alone.

A solver's step is linear in its x0 predictions D: with v = 1/s^2 for ancestral steps and v = 1/s for the others (s the
noise level of x / alpha, which is the state here),

    v_j x_j = v_i x_i + (v_j - v_i) D_i        (plus the noise of the path, for ancestral steps),

and DPM-Solver++(2M) puts D_i + (D_i - D_k) h_i / (2 h_k) in place of D_i, k being the node before i and h the steps in
log s. A recorded run is the sum of its steps, so the error of a jump i -> j at the recorded latent of t_j is a weighted
sum of differences of recorded predictions: the noise is the same on both ways and falls out. All errors are therefore
quadratic forms of one Gram matrix of the predictions, over all prompts; no model runs.

The idea of searching on a recorded trajectory: GITS (arXiv 2506.10177), OSS (2503.21774), DMN (2402.17376).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .methods import Family, Space


def scale(space: Space, sigma: float) -> float:
    """Latents per x0 + sigma noise; sigma may be infinite, where there is no x0 in a flow."""
    return {"exploding": 1.0, "preserving": (1 + sigma**2) ** -0.5, "flow": 1 / (1 + sigma)}[space]


def x0_of(latents: Tensor, prediction: Tensor, sigma: float, kind: str, space: Space) -> Tensor:
    """The x0 that a prediction stands for, float32.

    `kind`: epsilon, v_prediction, sample or flow_prediction (noise minus data), as diffusers calls them; or velocity,
    which is data minus noise. Raises ValueError on another kind.
    """
    model = prediction.float()
    if kind in ("velocity", "flow_prediction"):
        share = 1 - scale("flow", sigma)
        return latents.float() + (share if kind == "velocity" else -share) * model
    state = latents.float() / scale(space, sigma)
    if kind == "epsilon":
        return state - sigma * model
    if kind == "v_prediction":
        return (state - sigma * (1 + sigma**2) ** 0.5 * model) / (1 + sigma**2)
    if kind == "sample":
        return model
    raise ValueError(f"prediction_type is {kind!r}; expected epsilon, v_prediction, sample or a velocity")


def gram(predictions: Tensor, columns: int = 1 << 16) -> Tensor:
    """Inner products [N, N] (float64) of the rows of [N, elements], some columns at a time."""
    products = torch.zeros(len(predictions), len(predictions), dtype=torch.float64)
    for part in predictions.split(columns, dim=1):
        products += part.double() @ part.double().T
    return products


@dataclass(frozen=True)
class Jumps:
    """A recording as the search sees it.

    sigmas: noise levels of its N nodes, descending, positive, the first perhaps infinite; the end is node N, at 0.
    products: Gram matrix [N, N] of the x0 predictions, relative to the squared norm of the result, mean over prompts.
    gains: how much of an error at node j is left in the result, [N + 1]; the last is 1.
    """

    sigmas: Sequence[float]
    products: Tensor
    gains: Tensor
    family: Family

    @property
    def end(self) -> int:
        return len(self.sigmas)

    @cached_property
    def _clock(self) -> Tensor:
        """v [N] of the nodes."""
        return torch.tensor(self.sigmas, dtype=torch.float64) ** (-2 if self.family == "ancestral" else -1)

    @cached_property
    def _taken(self) -> Tensor:
        """[N, N]: what the recorded run took for D in its step from each node, as weights of the predictions."""
        taken = torch.eye(self.end, dtype=torch.float64)
        if self.family == "multistep":
            for m in range(1, self.end - 1):  # the first and the last step are of first order
                slope = self._slope(m - 1, m, m + 1)
                taken[m, m] += slope
                taken[m, m - 1] -= slope
        return taken

    @cached_property
    def _walked(self) -> Tensor:
        """[N, N]: sum of (v_{m+1} - v_m) D_m over the recorded steps up to each node."""
        steps = (self._clock[1:] - self._clock[:-1])[:, None] * self._taken[:-1]
        return torch.cat([torch.zeros(1, self.end, dtype=torch.float64), steps.cumsum(0)])

    def _slope(self, before: int, i: int, j: int) -> float:
        """h_i / (2 h_before): the weight of D_i - D_before in a step of DPM-Solver++(2M)."""
        s = self.sigmas
        return math.log(s[i] / s[j]) / (2 * math.log(s[before] / s[i]))

    @cached_property
    def table(self) -> Tensor:
        """[N, N + 1, N]: for each two nodes i < j the error at j of a first-order jump from i, as weights of the
        predictions; zero where j is not after i."""
        n = self.end
        table = torch.zeros(n, n + 1, n, dtype=torch.float64)
        for i in range(n):
            v = self._clock[i + 1 :, None]
            table[i, i + 1 : n] = (self._walked[i] - self._walked[i + 1 :]) / v
            table[i, i + 1 : n, i] += 1 - (self._clock[i] / v).squeeze(1)
            table[i, n] -= self._taken[n - 1]
            table[i, n, i] += 1
        return table

    def weights(self, i: int, j: int, before: int | None) -> Tensor:
        """The error of the jump i -> j, as weights [N] of the predictions. `before` is the node visited before i."""
        row = self.table[i, j].clone()
        if self.family == "multistep" and before is not None and j < self.end:
            extra = float(1 - self._clock[i] / self._clock[j]) * self._slope(before, i, j)
            row[i] += extra
            row[before] -= extra
        return row

    def size(self, weights: Tensor) -> Tensor:
        """Norm of errors [..., N] that are given as weights of the predictions, relative to the result."""
        squared = torch.einsum("...m,mn,...n->...", weights, self.products, weights)
        return squared.clamp(min=0).sqrt()

    def part(self, stops: Sequence[int], k: int) -> Tensor:
        """What the k-th jump of a schedule leaves in the result, as weights [N]; the last of `stops` is the end."""
        i, j = stops[k], stops[k + 1]
        return self.gains[j] * self.weights(i, j, stops[k - 1] if k else None)

    def total(self, nodes: Sequence[int]) -> Tensor:
        """The parts of all jumps of a schedule added up as they stand, as weights [N]."""
        stops = [*nodes, self.end]
        return torch.stack([self.part(stops, k) for k in range(len(nodes))]).sum(0)

    def damage(self, nodes: Sequence[int]) -> float:
        """Predicted relative error of the result of a schedule of recorded nodes."""
        return float(self.size(self.total(nodes)))
