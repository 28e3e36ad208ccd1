"""The layout of a transformer that nobody here wrote, derived from its modules and from the source of its classes.

What the source does not say plainly is None. It is read once for each class; nothing is run.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from ..layout import TOKENS, Attention, Block, Cut, Grid, Kind, Layout, in_turn

TEXT = "encoder_hidden_states"
AXES = ("frames", "height", "width")
Tokens = tuple[str, ...]


def layout(transformer: Any) -> Layout:
    """What a transformer of diffusers, or of a similar make, says of itself.

    Its lists of blocks are those that it declares as `block_lists` (lists in a tuple of their own take turns), else its
    lists of modules whose class diffusers declares to be repeated or not to be split, else all its lists of two or more
    modules of one class that have parameters. Raises ValueError as `in_turn` does.
    """
    lists = getattr(transformer, "block_lists", None)
    groups, names = in_turn(transformer, _repeated(transformer) if lists is None else lists)
    blocks = tuple(Block(name, _streams(_kind_of(transformer.get_submodule(name)))) for name in names)
    axial = any("temporal" in name for group in groups for name in group)  # which axis is whose is not told
    attentions = tuple(found for block in blocks for found in _attentions(transformer, block, axial))
    return Layout(groups, blocks, attentions, _grid(transformer), _cuts(transformer))


def _repeated(transformer: Any) -> list[str]:
    """The lists of repeated modules right under a transformer, in the order of its definition."""
    kinds = {
        kind for key in ("_repeated_blocks", "_no_split_modules") for kind in getattr(transformer, key, None) or ()
    }
    lists = {name: child for name, child in transformer.named_children() if type(child).__name__ == "ModuleList"}
    declared = [name for name, entries in lists.items() if any(type(entry).__name__ in kinds for entry in entries)]
    alike = [
        name
        for name, entries in lists.items()
        if len(entries) > 1 and len({type(entry) for entry in entries}) == 1 and any(True for _ in entries.parameters())
    ]
    return declared or alike


def _kind_of(thing: Any) -> Any:
    return type(thing)


@cache
def _source(function: Callable[..., Any]) -> ast.AST | None:
    """The syntax tree of a function, None where its source is not there."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


@cache
def _streams(block: type) -> Tokens | None:
    """The arguments of a block that it returns, where every return says so by their names."""
    tree = _source(block.forward)  # type: ignore[attr-defined]  # a module's
    returned = set()
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Return) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            returned.add(tuple(value.id if isinstance(value, ast.Name) else "" for value in values))
    parameters = inspect.signature(block.forward).parameters  # type: ignore[attr-defined]
    (names,) = returned if len(returned) == 1 else (("",),)
    return names if all(name in parameters for name in names) else None


def _attentions(transformer: Any, block: Block, axial: bool) -> list[Attention]:
    """The modules of a block that have heads and make queries."""
    found, within = [], transformer.get_submodule(block.module)
    for name, module in within.named_modules():
        heads, inner = getattr(module, "heads", None), getattr(module, "inner_dim", None)
        if not isinstance(heads, int) or not isinstance(inner, int) or not hasattr(module, "to_q"):
            continue
        told = _tokens(_kind_of(within), name, _kind_of(getattr(module, "processor", None)), block.streams)
        kind, queries, keys = (None, None, None) if axial and told[0] == "self" else told
        found.append(Attention(f"{block.module}.{name}", heads, inner // heads, kind, queries, keys))
    return found


@cache
def _tokens(
    block: type, name: str, processor: type, streams: Tokens | None
) -> tuple[Kind | None, Tokens | None, Tokens | None]:
    """Kind, queries and keys of the attention `name` of a class of blocks, by how the block calls it.

    Text that is given to it is attended to; where the block returns the text, too, the text attends as well. Tokens
    that are concatenated before the call, or else by the processor, are attended to jointly.
    """
    tree = _source(block.forward)  # type: ignore[attr-defined]
    calls = [node for node in ast.walk(tree) if _is_call(node, f"self.{name}")] if tree else []
    if len(calls) != 1 or streams is None or not isinstance(call := calls[0], ast.Call):
        return None, None, None
    context = next((keyword.value for keyword in call.keywords if keyword.arg == TEXT), None)
    if context is None and len(call.args) > 1:
        context = call.args[1]
    if isinstance(context, ast.IfExp):
        return None, None, None  # it depends
    given = context is not None and "encoder" in ast.unparse(context)
    if given and streams == (TOKENS,):
        return "cross", (TOKENS,), (TEXT,)
    order = _order(processor.__call__) if given else _order(block.forward, call.lineno)  # type: ignore[attr-defined]
    if not given and order is None:
        return "self", (TOKENS,), (TOKENS,)
    return ("joint", order, order) if order and set(streams) == {TOKENS, TEXT} else (None, None, None)


def _is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


@cache
def _order(function: Callable[..., Any], before: int | None = None) -> Tokens | None:
    """In which order a function concatenates tokens and text, in a line above `before`; None where it does not."""
    tree = _source(function)
    for node in ast.walk(tree) if tree else ():
        if not isinstance(node, ast.Call) or not _is_call(node, "torch.cat") or not node.args:
            continue
        if (before is None or node.lineno < before) and isinstance(node.args[0], ast.List):
            of_text = ["encoder" in ast.unparse(entry) for entry in node.args[0].elts]
            if len(of_text) == 2 and sum(of_text) == 1:
                return (TEXT, TOKENS) if of_text[0] else (TOKENS, TEXT)
    return None


def _grid(transformer: Any) -> Callable[[Mapping[str, Any]], Grid | None]:
    """How the token grid of a call is told: by the ids of the tokens, by its arguments, or by the latents' sides."""
    forward = type(transformer).forward
    parameters = inspect.signature(forward).parameters
    if "img_ids" in parameters:
        return _grid_of_ids
    if {"num_frames", "height", "width"} <= parameters.keys():
        return _grid_of_numbers
    config = getattr(transformer, "config", None)
    patch = _patch(config) if isinstance(config, Mapping) else None
    return partial(_grid_of_sides, axes=_axes(forward), patch=patch)


def _grid_of_ids(call: Mapping[str, Any]) -> Grid | None:
    """By the ids [N, 3] or [B, N, 3] of tokens: frame, row, column. Reading them is a wait for a device."""
    ids = call.get("img_ids")
    if ids is None or ids.shape[-1] != 3:
        return None
    ids = ids.reshape(-1, *ids.shape[-2:])[0]
    frames, height, width = (int(axis.max() - axis.min()) + 1 for axis in ids.unbind(-1))
    return (frames, height, width) if frames * height * width == len(ids) else None


def _grid_of_numbers(call: Mapping[str, Any]) -> Grid | None:
    """By the numbers that a call gives beside its tokens [B, N, C]."""
    sides = [call.get(name) for name in ("num_frames", "height", "width")]
    if not all(isinstance(side, int) for side in sides):
        return None
    frames, height, width = map(int, sides)  # type: ignore[arg-type]
    return (frames, height, width) if frames * height * width == call[TOKENS].shape[1] else None


def _grid_of_sides(call: Mapping[str, Any], axes: Tokens | None, patch: Grid | None) -> Grid | None:
    """By the sides of latents [B, C, H, W], or of those of a video in the order of `axes`."""
    latents = call.get(TOKENS)
    if latents is None or patch is None:
        return None
    if latents.ndim == 4 and axes is None:
        sides = (1, *latents.shape[2:])
    elif latents.ndim == 5 and axes is not None:
        sides = tuple(latents.shape[axes.index(axis)] for axis in AXES)
    else:
        return None
    if any(side % length for side, length in zip(sides, patch, strict=True)):
        return None
    frames, height, width = (int(side) // length for side, length in zip(sides, patch, strict=True))
    return frames, height, width


def _patch(config: Mapping[str, Any]) -> Grid | None:
    """Frames, height and width of a patch."""
    patch = config.get("patch_size")
    if isinstance(patch, list | tuple) and len(patch) == 3:
        return patch[0], patch[1], patch[2]
    return (config.get("patch_size_t") or 1, patch, patch) if isinstance(patch, int) else None


@cache
def _axes(forward: Callable[..., Any]) -> Tokens | None:
    """What the five axes of the latents are, by the names under which the forward takes their sizes apart."""
    tree = _source(forward)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == f"{TOKENS}.shape":
            names = ast.unparse(node.targets[0]).strip("()").split(", ")
            axes = tuple(next((axis for axis in AXES if name.endswith(axis)), name) for name in names)
            if len(axes) == 5 and set(AXES) <= set(axes):
                return axes
    return None


def _cuts(transformer: Any) -> tuple[Cut, ...] | None:
    """Where diffusers itself cuts the sequence of this transformer; None where it has no plan for it."""
    plan: Mapping[str, Any] | None = getattr(transformer, "_cp_plan", None)
    found = []
    for module, entries in plan.items() if plan else ():
        for argument, how in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(how, list | tuple) or not hasattr(how, "split_dim"):
                return None  # a form of plan that is not known here
            found.append(Cut(module, argument, how.split_dim, dims=how.expected_dims))
    return tuple(found) or None
