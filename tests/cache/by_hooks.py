"""Reuse of blocks in other words than runner.cache.reuse: all blocks compute, and hooks put in what is reused."""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager

from runner.model import blocks


def entering(block, streams, args, kwargs):
    """The streams of these names among the arguments of a block."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given[name] for name in streams]


def left(returned):
    """What a block returned, as a list."""
    return list(returned) if isinstance(returned, tuple) else [returned]


@contextmanager
def by_hooks(pipeline, streams, policy, steps):
    """What leaves a range that is reused is what entered it and the change that was kept of each stream. `streams` are
    the arguments that carry on, in the order in which blocks return them."""
    modules = [pipeline.transformer.get_submodule(name) for name in blocks(pipeline)]
    entered, kept = {}, {}

    def before(at):
        def hook(block, args, kwargs):
            for reused in (policy.kept(steps.position), policy.ranges[steps.position]):
                if reused and reused[0] == at:
                    entered[steps.call] = entering(block, streams, args, kwargs)

        return hook

    def after(at):
        def hook(block, args, returned):
            if (reused := policy.kept(steps.position)) and reused[1] - 1 == at:
                pairs = zip(left(returned), entered[steps.call], strict=True)
                kept[steps.call] = [None if now is None else now - was for now, was in pairs]
            if (reused := policy.ranges[steps.position]) and reused[1] - 1 == at:
                pairs = zip(entered[steps.call], kept[steps.call], strict=True)
                made = tuple(None if change is None else was + change for was, change in pairs)
                return made if isinstance(returned, tuple) else made[0]

        return hook

    with ExitStack() as stack:
        for at, module in enumerate(modules):
            stack.callback(module.register_forward_pre_hook(before(at), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(at)).remove)
        yield


def attributes(transformer):
    """Every attribute of every module, hooks included, as it is now."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in transformer.named_modules()
    }
