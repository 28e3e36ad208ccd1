"""What quantization cost each layer: signal-to-noise ratios on recorded calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from runner.model.arguments import moved
from runner.quant.linear import QuantizedLinear


@dataclass(frozen=True)
class LayerQuality:
    """One quantized linear against its float original.

    snr_db: 10 log10(sum y^2 / sum (yq - y)^2) of its outputs, both fed the recorded float input, so that the noise is
    this layer's own and not what earlier layers pass on. worst_call_snr_db: the same of the worst call alone, which a
    sum over steps of very different scale hides. weight_snr_db: the same of its weights. All are infinite where there
    is no noise; the first two are None where nothing was recorded. shape: (N, K); calls, rows: how often it ran, on how
    many input rows in all.
    """

    layer: str
    snr_db: float | None
    worst_call_snr_db: float | None
    weight_snr_db: float
    shape: tuple[int, int]
    calls: int
    rows: int


@torch.no_grad()
def snr_by_layer(
    float_model: nn.Module, quantized_layers: Mapping[str, QuantizedLinear], calls: Iterable[Mapping[str, Any]]
) -> list[LayerQuality]:
    """Replay `calls` (keyword arguments) through the float model and compare each layer on the way, worst first.

    No activation is kept. A layer that no call reaches raises ValueError: it would have no figure.
    """
    linears = {name: cast(nn.Linear, float_model.get_submodule(name)) for name in quantized_layers}
    device = next(float_model.parameters()).device
    norms: dict[str, list[Tensor]] = {name: [] for name in linears}  # of signal and noise, by call
    rows = dict.fromkeys(linears, 0)

    def compare(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            noise = quantized_layers[name](args[0]).float() - output.float()
            norms[name].append(torch.stack([_norm(output), _norm(noise)]))
            rows[name] += output.numel() // output.shape[-1]

        return hook

    hooks = [linear.register_forward_hook(compare(name)) for name, linear in linears.items()]
    try:
        for call in calls:
            float_model(**moved(call, device))
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name, calls_of in norms.items() if not calls_of]:
        raise ValueError(f"no recorded call reaches {', '.join(unseen[:8])}")
    result = []
    for name, layer in quantized_layers.items():
        by_call = torch.stack(norms[name]).cpu().double().square()  # not every device has float64
        result.append(
            LayerQuality(
                layer=name,
                snr_db=_decibel(*by_call.sum(0).tolist()),
                worst_call_snr_db=min(_decibel(*call) for call in by_call.tolist()),
                weight_snr_db=weight_snr(linears[name].weight, layer.dequantized_weight()),
                shape=(layer.out_features, layer.in_features),
                calls=len(by_call),
                rows=rows[name],
            )
        )
    return sorted(result, key=lambda quality: cast(float, quality.snr_db))


def snr_of_weights(float_model: nn.Module, quantized_layers: Mapping[str, QuantizedLinear]) -> list[LayerQuality]:
    """What is known of each layer without a recorded call: the noise of its weights, worst first."""
    result = []
    for name, layer in quantized_layers.items():
        snr = weight_snr(cast(nn.Linear, float_model.get_submodule(name)).weight, layer.dequantized_weight())
        result.append(LayerQuality(name, None, None, snr, (layer.out_features, layer.in_features), 0, 0))
    return sorted(result, key=lambda quality: quality.weight_snr_db)


def weight_snr(weight: Tensor, quantized: Tensor) -> float:
    """10 log10(sum W^2 / sum (Wq - W)^2), decibels; infinite where they are equal."""
    weight = weight.detach().float()
    return _decibel(float(_norm(weight)) ** 2, float(_norm(quantized.to(weight.device) - weight)) ** 2)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float32)


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
