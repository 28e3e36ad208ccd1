"""How every block boundary moved from step to step: the Gram matrices that predict what reusing blocks would cost.

With h_i the tokens that enter block i (h_L: those that leave the last one) and d_i = h_i(t) - h_i(t'), reusing the
blocks [s, e) at step t from step t' puts an error of d_e - d_s onto the tokens. Its square is
<d_e,d_e> - 2<d_e,d_s> + <d_s,d_s>: the Gram matrix of the d_i holds it for every range. What is written, in float32, is
that of their increments, d_0 and d_{i+1} - d_i: where tokens move far and blocks add little, small differences of its
large entries would be lost. Kept for the lags t - t' = 1..k and for each pair of guidance branches, from which the
matrix of the guided combination follows (`Movement.guided`): its weights are those with which the solver's prediction
is made of the branches' outputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.generation.steps import Steps
from runner.model import blocks
from runner.model.streams import Streams
from runner.recording.step_files import step_file, step_files

TOKENS = 32  # of each stream, drawn once: the errors of all ranges are then measured on the same ones


class Boundaries:
    """Hooks on the declared blocks that write one Gram matrix a step, lag and pair of branches to `folder`.

    For one prompt at a time. A step holds the boundaries of `TOKENS` tokens; those of the last `lags` steps are kept,
    whatever the number of steps. Branches are the rows of the batch, then the calls of a step, in whatever order the
    pipeline has them.
    """

    def __init__(self, pipeline: Any, steps: Steps, lags: int, folder: Path) -> None:
        self.steps, self.folder = steps, folder / "movement"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._transformer = pipeline.transformer
        self._blocks = [pipeline.transformer.get_submodule(name) for name in blocks(pipeline)]
        self._streams = Streams(self._blocks)
        self._past: deque[Tensor] = deque(maxlen=lags)
        self._chosen: dict[int, Tensor] = {}  # by number of tokens: those that are looked at
        self._first: dict[str, Any] = {}
        self._call: list[list[Any]] = []  # the chosen tokens that each block of the current call returned
        self._calls: list[Tensor] = []  # [batch, boundaries, elements] of the calls of this step
        self._outputs: list[Tensor] = []  # [batch, C, ...] of the calls of this step
        steps.before.append(self._end_of_step)

    def __enter__(self) -> Boundaries:
        self._hooks = [
            block.register_forward_hook(self._hook(index), with_kwargs=True) for index, block in enumerate(self._blocks)
        ]
        self._hooks.append(self._transformer.register_forward_hook(self._answered))
        return self

    def _answered(self, _: Any, args: tuple[Any, ...], returned: Any) -> None:
        self._outputs.append(returned[0])

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, index: int) -> Any:
        last = len(self._blocks) - 1

        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
            if not self._streams.complete(last):
                given = self._streams.given(index, args, kwargs)
                self._streams.entered(index, given)
                self._streams.left(index, returned)
            if index == 0:
                self._first = self._streams.given(0, args, kwargs)
            self._call.append([None if v is None else self._pick(v) for v in self._streams.values(returned)])
            if index == last:
                self._end_of_call()

        return hook

    def _end_of_call(self) -> None:
        names = self._streams.names(0, self._first)
        boundaries = [[self._pick(self._first[name]) for name in names]]
        for block, left in enumerate(self._call):
            values = dict(zip(self._streams.names(block, self._first), left, strict=True))
            boundaries.append([values[name] for name in names])
        self._call.clear()
        self._first = {}
        # A stream that the last block drops ends there: it has moved nowhere.
        columns = [torch.stack([v for v in values if v is not None], 1) for values in zip(*boundaries, strict=True)]
        whole = max(column.shape[1] for column in columns)
        columns = [torch.cat([c, c[:, -1:].expand(-1, whole - c.shape[1], -1)], 1) for c in columns]
        self._calls.append(torch.cat(columns, 2).float())

    def _pick(self, x: Tensor) -> Tensor:
        """Chosen tokens of [B, ..., D], flat: [B, elements]."""
        tokens = x.reshape(len(x), -1, x.shape[-1])
        if (count := tokens.shape[1]) not in self._chosen:
            drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:TOKENS].sort().values
            self._chosen[count] = drawn.to(x.device)
        return tokens.index_select(1, self._chosen[count]).flatten(1)

    def _end_of_step(self, position: int, _: Any, __: Any, prediction: Tensor) -> None:
        if not self._calls:
            return
        now, weights = torch.cat(self._calls), _weights(torch.cat(self._outputs), prediction)
        self._calls.clear()
        self._outputs.clear()
        rows, boundaries, elements = now.shape
        grams = []
        for past in self._past:
            moved = now - past
            added = torch.cat([moved[:, :1], moved.diff(dim=1)], 1).view(rows * boundaries, elements)
            grams.append((added @ added.T).div_(elements).view(rows, boundaries, rows, boundaries).transpose(1, 2))
        self._past.appendleft(now)
        if grams:
            tensors = {"increments": torch.stack(grams).cpu().contiguous(), "weights": weights.cpu()}
            save_file(tensors, step_file(self.folder, position))


def _weights(outputs: Tensor, prediction: Tensor) -> Tensor:
    """The weights [rows] with which a prediction [1, C, ...] is made of outputs [rows, C or more, ...]: of one row 1,
    of two those of sum 1 that come nearest. ValueError for more."""
    if len(outputs) == 1:
        return torch.ones(1)
    if len(outputs) > 2:
        raise ValueError(f"{len(outputs)} branches make one prediction; movement is recorded of one or two")
    first, second = outputs[:, : prediction.shape[1]].float()
    apart = second - first
    share = ((prediction[0].float() - first) * apart).sum() / apart.square().sum().clamp(min=1e-30)
    return torch.stack([1 - share, share])


@dataclass(frozen=True)
class Movement:
    """The movement of one recorded prompt. gram[t][k-1] is the matrix of step t against step t - k (k up to t),
    float64 [branches, branches, L+1, L+1], mean over elements; weights[t] [branches] those of the guided combination.
    At step 0 there are none."""

    gram: list[Tensor]
    weights: list[Tensor]

    @classmethod
    def read(cls, part: Path) -> Movement:
        """What `Boundaries` wrote into the folder of a part."""
        files = [file.path for file in step_files(part / "movement")]
        steps = [{name: tensor.double() for name, tensor in load_file(file).items()} for file in files]
        grams = (step["increments"].cumsum(-1).cumsum(-2) for step in steps)
        return cls([torch.empty(0), *grams], [torch.empty(0), *(step["weights"] for step in steps)])

    @property
    def blocks(self) -> int:
        return self.gram[-1].shape[-1] - 1

    @property
    def lags(self) -> int:
        """The largest lag that was recorded."""
        return max(len(g) for g in self.gram[1:])

    def matrices(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """By step: the Gram matrices [lags, L+1, L+1] of a combination of the branches, sum_b weights[step][b] d_b."""
        pairs = zip(self.gram, weights, strict=True)
        return [torch.einsum("a,b,kabij->kij", w, w, g) if g.numel() else g for g, w in pairs]

    def guided(self) -> list[Tensor]:
        """By step: those of what guidance makes of the branches (arXiv 2207.12598)."""
        return self.matrices(self.weights)


def local_error(matrix: Tensor) -> Tensor:
    """|d_e - d_s| of every range of blocks, from Gram matrices [..., L+1, L+1]: rows are s, columns e."""
    squares = matrix.diagonal(dim1=-2, dim2=-1)
    return (squares[..., None, :] + squares[..., :, None] - 2 * matrix).clamp(min=0).sqrt()
