"""A model's linears put into any schemes and taken back from an export: the two verbs, the same for all schemes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from runner.quant import export, rules, scheme, tagged
from runner.quant.linear import QuantizedLinear

M = TypeVar("M", bound=nn.Module)
Parameters = Mapping[str, Any]


def quantize(
    model: nn.Module,
    named: str,
    layers: Mapping[str, str],
    calibrated: Mapping[str, Any],
    parameters: Parameters | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and description of `model` with `layers` quantized; the model stays as it is.

    `layers` has the scheme of each of these nn.Linear modules, by full name; `named` is the scheme that the files are
    called after. `calibrated` holds what each layer's scheme needs, `parameters` (the `quant` section) the values of
    its parameters. ValueError, with the layer's name, for what lacks, or what a scheme refuses.
    """
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(layers.keys() - linears):
        raise ValueError(f"not linears of {type(model).__name__}: {', '.join(unknown)}")
    for need in sorted({rules.known(of).need for of in layers.values()} - {"nothing"}):
        lacking = sorted(name for name, of in layers.items() if rules.known(of).need == need and name not in calibrated)
        if lacking:
            raise ValueError(f"no recorded {need.replace('_', ' ')} for {', '.join(lacking)}")

    def entries() -> Iterator[tuple[str, Tensor | export.Layer]]:
        seen: set[int] = set()
        for name, module in model.named_modules():
            if name in layers:
                assert isinstance(module, nn.Linear)
                known = rules.known(layers[name])
                own = {key: (parameters or {})[key] for key in known.parameters}
                parts = scheme(layers[name]).quantize_linear(name, module, calibrated.get(name), **own)
                yield name, export.Layer(known.tag, parts)
                continue
            for leaf, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:  # tied parameters are exported once, under their first name
                    seen.add(id(parameter))
                    yield f"{name}.{leaf}" if name else leaf, parameter.detach().cpu()

    return export.assemble(rules.known(named).tag, entries())


def apply(model: M, tensors: Mapping[str, Tensor], description: Mapping[str, str]) -> M:
    """Swap the quantized linears of `model`, each by its tag, and load every other parameter, in place; returns it.

    The model may be on the meta device, so that its float weights are never held; what was there then stays where
    `tensors` are. ValueError for an export of another model, with the missing, unexpected and misshapen names.
    """
    layers, floats = export.take_apart(tensors, description)
    quantized = {name: tagged(layer.tag).Linear(**layer.parts) for name, layer in layers.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name in layers if isinstance(module := modules.get(name), nn.Linear)}
    _check_fit(model, linears, quantized, floats)

    def to_its_device(new: nn.Module | Tensor, old: Tensor) -> Any:
        return new if old.is_meta else new.to(old.device)

    # By identity: what stands in several places is replaced in all of them by the same.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded = {
        id(parameters[key]): nn.Parameter(to_its_device(tensor, parameters[key]), requires_grad=False)
        for key, tensor in floats.items()
    }
    swapped = {
        id(linear): to_its_device(quantized[name].train(linear.training), linear.weight)
        for name, linear in linears.items()
    }
    for path, module in modules.items():
        parent, _, leaf = path.rpartition(".")
        if id(module) in swapped:
            setattr(modules[parent], leaf, swapped[id(module)])
            continue
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in loaded:
                module.register_parameter(name, loaded[id(parameter)])
    return model


def _check_fit(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    quantized: Mapping[str, QuantizedLinear],
    floats: Mapping[str, Tensor],
) -> None:
    """ValueError unless the export holds exactly the parameters of `model`, in their shapes."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # A packed weight has another shape than the linear that it stands for.
    given = {f"{name}.weight": [layer.out_features, layer.in_features] for name, layer in quantized.items()}
    given |= {f"{name}.bias": [layer.out_features] for name, layer in quantized.items() if layer.bias is not None}
    given |= {key: list(tensor.shape) for key, tensor in floats.items()}
    misshapen = [
        f"{key} {shape}, must be {list(parameters[key].shape)}"
        for key, shape in given.items()
        if key in parameters and list(parameters[key].shape) != shape
    ]
    covered = {id(parameters[key]) for key in given if key in parameters}  # tied parameters, under any of their names
    missing = [key for key, parameter in parameters.items() if id(parameter) not in covered]
    unexpected = [key for key in given if key not in parameters]
    unexpected += [
        f"{name} (not a linear)" for name in quantized if name not in linears and f"{name}.weight" in parameters
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"this export is not one of this {type(model).__name__}: missing {missing[:8]}, "
            f"unexpected {unexpected[:8]}, misshapen {misshapen[:8]}"
        )
    if meta := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise ValueError(f"buffers on the meta device, which no export holds: {', '.join(meta[:8])}")
