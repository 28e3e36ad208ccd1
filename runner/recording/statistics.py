"""The range of every linear's input, step by step, gathered while the model runs: what the observers read."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from runner.model.arguments import moved

if TYPE_CHECKING:
    from runner.generation.steps import Steps

# Histograms are kept over fixed, sign-symmetric bins, so that they merge by addition whatever the ranges were: 16 bins
# an octave between 2^-14 and 2^16 (the leading bits of a float are its bin), one bin a sign for all that is smaller.
OCTAVES = (-14, 16)
_PER_SIGN = 16 * (OCTAVES[1] - OCTAVES[0]) + 1
BINS = 2 * _PER_SIGN
# Elements of a linear's input that enter the histogram at one call: enough for the 99.99th percentile over the steps
# of a run, few enough to cost little of a step. Minimum, maximum and absmax always see every element.
SAMPLE = 1024
FIELDS = ("minimum", "maximum", "absmax", "histogram")  # of LayerStatistics


def _edges() -> Tensor:
    octave = torch.arange(OCTAVES[0], OCTAVES[1], dtype=torch.float64)
    mantissa = 1 + torch.arange(16, dtype=torch.float64) / 16
    positive = (torch.exp2(octave)[:, None] * mantissa).flatten()
    positive = torch.cat([positive, torch.tensor([2.0 ** OCTAVES[1]], dtype=torch.float64)])
    return torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])


HISTOGRAM_EDGES: Tensor = _edges()  # float64 [BINS + 1], ascending


@cache
def _bin_of_bits(device: torch.device) -> Tensor:
    """The bin of each sign, exponent and first four bits of the mantissa (a float's leading 13 bits): int32 [8192]."""
    leading = torch.arange(1 << 12, dtype=torch.int32)
    magnitude = (leading - ((OCTAVES[0] + 127) << 4) + 1).clamp(0, _PER_SIGN - 1)
    return torch.cat([_PER_SIGN + magnitude, _PER_SIGN - 1 - magnitude]).to(device)


def histogram(values: Tensor) -> Tensor:
    """Count values [rows, n] (any float dtype) into the fixed bins: integers [rows, BINS].

    Launches work and waits for nothing. What lies beyond the octaves is counted in the outermost bins.
    """
    if values.dtype != torch.bfloat16:
        values = values.float()
    # bfloat16 is the leading half of a float32, so the same 13 bits lead both.
    bits = values.view(torch.int16) >> 3 if values.dtype == torch.bfloat16 else values.view(torch.int32) >> 19
    rows = values.shape[0]
    bins = _bin_of_bits(values.device).index_select(0, bits.flatten().to(torch.int32).bitwise_and_((1 << 13) - 1))
    bins = bins.view(rows, -1) + (torch.arange(rows, dtype=torch.int32, device=values.device) * BINS)[:, None]
    counts = torch.zeros(rows * BINS, dtype=torch.int32, device=values.device)
    counts.scatter_add_(0, bins.flatten().long(), torch.ones_like(bins).flatten())
    return counts.view(rows, BINS).to(torch.int16 if values.shape[1] < 2**15 else torch.int32)


@dataclass(frozen=True)
class LayerStatistics:
    """The input of one linear over B recorded generations ("batches") of S steps, K input channels.

    minimum, maximum: float32 [B, S]; absmax: float32 [B, S, K]; histogram: counts [B, S, BINS] of a
    sample of the elements.
    """

    minimum: Tensor
    maximum: Tensor
    absmax: Tensor
    histogram: Tensor

    def at(self, step: int) -> LayerStatistics:
        """The same statistics restricted to one step (S = 1)."""
        one = slice(step, step + 1)
        return LayerStatistics(self.minimum[:, one], self.maximum[:, one], self.absmax[:, one], self.histogram[:, one])


def _extremes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest and largest value [R], and the largest magnitude of each channel [R, K], of x [R, N, K].

    On a CPU floats are compared by their bits, as integers, which is several times faster than in bfloat16: positive
    floats are ordered as their bits are, negative ones the other way round. NaN comes last, so it is not lost.
    """
    kinds = {2: (torch.int16, 1 << 15), 4: (torch.int32, 1 << 31)}
    if x.device.type != "cpu" or x.element_size() not in kinds:
        return x.amin((-2, -1)), x.amax((-2, -1)), x.abs().amax(-2)
    integer, sign = kinds[x.element_size()]
    bits = x.contiguous().view(integer)
    flat = bits.flatten(1)
    least, most, most_negated = flat.amin(1), flat.amax(1), (flat ^ -sign).amax(1)
    low = torch.where(least < 0, most_negated ^ -sign, least)  # no sign bit is set: the least bits are the least value
    high = torch.where(most < 0, least, most)  # all are negative: the least bits are the largest value
    return low.view(x.dtype), high.view(x.dtype), (bits & (sign - 1)).amax(-2).view(x.dtype)


class LinearStatistics:
    """Hooks on every nn.Linear of a module that gather the statistics of its input, one row a step.

    Modules that get the very same tensor (q, k and v of an attention; the text in every block) share one record. Hooks
    only launch work and never wait for the device. Small inputs are set aside and reduced together at the end of the
    step, because there the launches would cost more than the arithmetic; large ones are reduced at once, so that no
    activation outlives its use.
    """

    SMALL = 1 << 18  # elements

    def __init__(self, module: nn.Module, steps: Steps) -> None:
        self.steps = steps
        self.source: dict[str, str] = {}
        self._linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
        self._seen: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._aside: dict[tuple[torch.Size, torch.dtype], list[tuple[str, Tensor]]] = {}
        self._rows: dict[str, dict[int, list[Tensor]]] = {}  # by linear and step, the values of FIELDS
        self._position = self._call = 0

    def __enter__(self) -> LinearStatistics:
        self._hooks = [m.register_forward_pre_hook(self._hook(name)) for name, m in self._linears.items()]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def observe(_: nn.Module, args: tuple[Any, ...]) -> None:
            if self.steps.position != self._position:
                self._close_step()
            elif self.steps.call != self._call:  # the other branch of guidance counts, also where it gets the same
                self._seen.clear()
            self._call = self.steps.call
            x = args[0]
            seen = self._seen.get(id(x))
            if seen is not None and seen[0]() is x:
                self.source[name] = seen[1]
                return
            self._seen[id(x)] = (weakref.ref(x), name)
            self.source[name] = name
            flat = x.detach().reshape(-1, x.shape[-1])
            if flat.numel() > self.SMALL:
                self._reduce([name], flat[None])
            else:
                self._aside.setdefault((flat.shape, flat.dtype), []).append((name, flat.clone()))

        return observe

    def _reduce(self, names: list[str], inputs: Tensor) -> None:
        """Add the inputs [names, N, K] to the rows of the current step."""
        low, high, absmax = _extremes(inputs)
        # Whole tokens, evenly spread, from another start at each step.
        _, n, k = inputs.shape
        tokens = min(n, max(1, SAMPLE // k))
        stride = n // tokens
        sample = inputs[:, self._position % stride :: stride][:, :tokens]
        rows = zip(low.unbind(), high.unbind(), absmax.unbind(), histogram(sample.flatten(1)).unbind(), strict=True)
        for name, row in zip(names, rows, strict=True):
            record = self._rows.setdefault(name, {})
            before = record.get(self._position)  # there is one when this is the second guidance branch of the step
            record[self._position] = list(row) if before is None else _merge(before, row)

    def _close_step(self) -> None:
        for group in self._aside.values():
            self._reduce([name for name, _ in group], torch.stack([x for _, x in group]))
        self._aside.clear()
        self._seen.clear()
        self._position = self.steps.position

    def seen(self) -> dict[str, dict[int, list[Tensor]]]:
        """The rows gathered so far, by linear and step, on the host, for `merge`."""
        self._close_step()
        rows: dict[str, dict[int, list[Tensor]]] = moved(self._rows, "cpu")
        return rows

    def merge(self, rows: dict[str, dict[int, list[Tensor]]]) -> None:
        """Add what another process has `seen` of the same generation: the other branch of guidance."""
        self._close_step()
        for name, record in rows.items():
            ours = self._rows.setdefault(name, {})
            for step, row in record.items():
                row = [value.to(ours[step][0].device) for value in row] if step in ours else row
                ours[step] = _merge(row, ours[step]) if step in ours else row

    def save(self, folder: Path) -> None:
        """Write statistics.safetensors and statistics.json (which linear shares whose record) into `folder`."""
        self._close_step()
        tensors: dict[str, Tensor] = {}
        for name, record in self._rows.items():
            for field, values in zip(FIELDS, zip(*(record[step] for step in sorted(record)), strict=True), strict=True):
                stacked = torch.stack(values).cpu()
                tensors[f"{name}.{field}"] = stacked if field == "histogram" else stacked.float()
        save_file(tensors, folder / "statistics.safetensors")
        (folder / "statistics.json").write_text(json.dumps(self.source, indent=2))


def _merge(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1]), torch.maximum(a[2], b[2]), a[3] + b[3]]
