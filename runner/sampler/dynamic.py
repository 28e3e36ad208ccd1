"""The best schedule of K recorded nodes: dynamic programming over jumps, then exchanges of nodes.

Jump errors add up as if they pointed the same way (`power` 1) or were independent (2): the two ends of what can happen.
Where the step depends on the node before, as in DPM-Solver++(2M), pairs of nodes are the state.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

from .jumps import Jumps


def shortest(jumps: Jumps, count: int, power: int) -> list[int]:
    """The `count` nodes, the first recorded one among them, whose jumps add up to least; ascending.

    Raises ValueError unless there are that many nodes.
    """
    if not 1 <= count <= jumps.end:
        raise ValueError(f"a schedule of {count} steps cannot be chosen from {jumps.end} recorded ones")
    find = _by_pairs if jumps.family == "multistep" and count > 1 else _by_nodes
    return find(jumps, count, power)


def _by_nodes(jumps: Jumps, count: int, power: int) -> list[int]:
    n = jumps.end
    costs = torch.full((n, n + 1), torch.inf, dtype=torch.float64)
    for i in range(n):
        costs[i, i + 1 :] = (jumps.gains * jumps.size(jumps.table[i]))[i + 1 :] ** power
    best = torch.full((n,), torch.inf, dtype=torch.float64)
    best[0], back = 0.0, []
    for _ in range(count - 1):
        best, source = (best[:, None] + costs[:, :n]).min(0)
        back.append(source)
    nodes = [int((best + costs[:, n]).argmin())]
    for source in reversed(back):
        nodes.insert(0, int(source[nodes[0]]))
    return nodes


def _by_pairs(jumps: Jumps, count: int, power: int) -> list[int]:
    n = jumps.end
    last = torch.stack([(jumps.gains * jumps.size(jumps.table[i]))[n] ** power for i in range(n)])
    costs = [_costs_through(jumps, i, power) for i in range(n)]
    best = torch.full((n, n), torch.inf, dtype=torch.float64)  # by the last two nodes
    best[0, 1:] = ((jumps.gains * jumps.size(jumps.table[0]))[1:n]) ** power
    back = []
    for _ in range(count - 2):
        steps = [(best[:, i, None] + costs[i]).min(0) for i in range(n)]
        best = torch.stack([step.values for step in steps])
        back.append(torch.stack([step.indices for step in steps]))
    place = int((best + last).argmin())
    nodes = [place // n, place % n]
    for source in reversed(back):
        nodes.insert(0, int(source[nodes[0], nodes[1]]))
    return nodes


def _costs_through(jumps: Jumps, i: int, power: int) -> Tensor:
    """[N, N]: the cost of the jump from i to each node (columns) after a jump to i from each node (rows)."""
    n = jumps.end
    costs = torch.full((n, n), torch.inf, dtype=torch.float64)
    for before in range(i):
        rows = [jumps.weights(i, j, before) for j in range(i + 1, n)]
        if rows:
            costs[before, i + 1 :] = (jumps.gains[i + 1 : n] * jumps.size(torch.stack(rows))) ** power
    return costs


def exchange(jumps: Jumps, nodes: Sequence[int], sweeps: int = 20) -> list[int]:
    """Move single nodes (never the first) to where the predicted damage of the whole falls most, until none falls.

    Unlike the sums above, the whole takes into account how the jumps' errors point.
    """
    nodes, least = list(nodes), jumps.damage(nodes)
    for _ in range(sweeps):
        before = least
        for place in range(1, len(nodes)):
            others = nodes[:place] + nodes[place + 1 :]
            free = [j for j in range(1, jumps.end) if j not in others]
            damages = jumps.size(_with_one_more(jumps, others, free))
            best = int(damages.argmin())
            if float(damages[best]) < least:
                nodes, least = sorted([*others, free[best]]), float(damages[best])
        if least > before * (1 - 1e-3):
            break
    return nodes


def _with_one_more(jumps: Jumps, nodes: list[int], more: list[int]) -> Tensor:
    """[len(more), N]: the error of the whole, as weights of the predictions, if each of `more` joins the nodes. Only
    the jump that it cuts in two changes, and the one after it where the solver looks back."""
    total, stops = jumps.total(nodes), [*nodes, jumps.end]
    rows = []
    for node in more:
        place = bisect(stops, node)
        new = [*stops[:place], node, *stops[place:]]
        row = total.clone()
        for k in range(place - 1, min(place + 1, len(stops) - 1)):
            row -= jumps.part(stops, k)
        for k in range(place - 1, min(place + 2, len(new) - 1)):
            row += jumps.part(new, k)
        rows.append(row)
    return torch.stack(rows)
