"""The rules between keys, about files, of this machine and of the model."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.faults import Fault, nearest, spell
from runner.config.precedence import Explicit
from runner.desk.plan.forwards import evaluations
from runner.desk.plan.stages import STAGES
from runner.model import checkpoints, rules_of
from runner.model.checkpoints import Checkpoint
from runner.parallel import rules as parallel

if TYPE_CHECKING:
    from runner.model.rules import Rules

# Folders and files: relative to the working folder when given, absolute in run.json.
PATHS = (
    *("output", "model.cache_dir", "quant.folder", "dump.from", "dump.folder"),
    *("sample.folder", "sample.lpips", "sample.clip", "sampler.schedule", "sampler.save_dir"),
    *("sampler.videos_path", "cache.config", "cache.save_path"),
)


def between(
    config: dict[str, Any], checkpoint: Checkpoint | None, wrong: set[str], explicitly: Explicit
) -> Iterator[Fault]:
    """Rules between keys, about files and of the model; what is `wrong` already is not judged again.

    Resolves `config` in place: paths become absolute, prompts lists, and a schedule's file says how many steps.
    """

    def good(*names: str) -> bool:
        return not any(name in wrong or name.partition(".")[0] in wrong for name in names)

    for key in filter(good, PATHS):
        section, _, name = key.rpartition(".")
        values = config[section] if section else config
        if values.get(name) is not None:
            # Hydra makes the run folder below `output` as it stands, so ~ in it is no home folder here either.
            values[name] = os.path.abspath(values[name] if key == "output" else os.path.expanduser(values[name]))
    if good("dump.from") and (file := config["dump"]["from"]) is not None and not os.path.isfile(file):
        yield Fault("dump.from", "there is no such file", file)
    for name in ("lpips", "clip"):
        folder = config["sample"].get(name) if good(f"sample.{name}") else None
        if folder is not None and not os.path.isdir(folder):
            yield Fault(f"sample.{name}", "there is no such folder", folder)
    yield from _stage_names(config, good)
    if good("timing") and config["timing"]["benchmark"] and not config["timing"]["repeats"]:
        yield Fault("timing.repeats", "expected at least 1 for timing.benchmark", 0)
    if good("timing", "cache.policy") and config["timing"]["benchmark"] and config["cache"]["policy"] != "none":
        yield Fault("cache.policy", "timing.benchmark times no cache yet; expected none", config["cache"]["policy"])
    if not any(key.partition(".")[0] in ("parallel", "sampler", "launch") for key in wrong):
        joint = config["sampler"]["guidance_batch"] == "joint" and "sampler.guidance_batch" in explicitly
        yield from itertools.starmap(Fault, parallel.faults(config, joint))
    if good("hardware.device") and (reason := _absent(config["hardware"]["device"])):
        yield Fault("hardware.device", reason, config["hardware"]["device"])
    on_host = good("hardware.device") and config["hardware"]["device"] == "cpu"
    if on_host and good("hardware.offload") and config["hardware"]["offload"]:
        yield Fault("hardware.offload", "expected false for hardware=cpu: all parts are on the host as it is", True)
    if not good("model", "model.name"):
        return
    model = config["model"]
    rules = rules_of(model)
    if checkpoint is not None and good("model.checkpoint"):
        model["checkpoint"] = checkpoint.path
    if not any(key.startswith("sampler") for key in wrong):
        yield from _guidance(config, rules.GUIDANCE_BATCHES)
        if methods := rules.sample_methods(checkpoint.folder if checkpoint is not None else None):
            yield from _sampler(config, methods, explicitly)
            if checkpoint is not None and checkpoint.folder is not None:
                yield from _solver(config["sampler"], rules, checkpoint.folder)
    found = list(rules.faults({name: value for name, value in model.items() if good(f"model.{name}")}))
    yield from (Fault(f"model.{name}", sentence, model[name]) for name, sentence in found)
    if not found and not any(key.startswith("model.") for key in wrong):
        model |= rules.settled(model)
    yield from _prompts(config, good, {name: value for name, value in model.items() if good(f"model.{name}")})
    if checkpoint is None or not good("model.checkpoint"):
        return
    if unusable := checkpoints.faults(checkpoint, model["name"]):
        yield from unusable
        return
    if not any(key.partition(".")[0] in ("cache", "sampler") for key in wrong):
        yield from _cache(config)
    if good("parallel.ulysses") and (heads := checkpoints.heads(model)):
        yield from itertools.starmap(Fault, parallel.head_faults(config["parallel"], heads))
    if good(*(f"model.{part}" for part in rules.PARTS)):
        places, missing = checkpoints.components(model, checkpoint)
        model |= places
        yield from missing


def _prompts(config: dict[str, Any], good: Any, model: Mapping[str, Any]) -> Iterator[Fault]:
    """Prompts as lists, and in those of text what they are given beside words."""
    if not good("prompts"):
        return
    prompts = config["prompts"]
    for name in filter(lambda name: good(f"prompts.{name}"), ("text", "calibration", "verification")):
        key, value = f"prompts.{name}", prompts.get(name)
        if isinstance(value, str) and value.endswith(".txt"):
            file = Path(value).expanduser()
            try:
                value = file.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                yield Fault(key, f"{file} is not UTF-8 (byte {error.start})")
            except OSError as error:
                yield Fault(key, f"{file} cannot be read: {error.strerror}")
            else:
                prompts[name] = [line.strip() for line in value if line.strip()]
                if not prompts[name]:
                    yield Fault(key, f"{file} holds no prompt")
        elif value is not None:
            prompts[name] = [prompt.strip() for prompt in ([value] if isinstance(value, str) else value)]
        elif name == "text":
            yield Fault(
                key,
                "expected a prompt, a list of prompts or a .txt file: neither the model nor this checkpoint has any",
            )
        elif name == "calibration":
            prompts[name] = prompts["text"]
        elif good("prompts.calibration"):
            prompts[name] = prompts["calibration"][-1:]
        if name == "text" and isinstance(prompts[name], list) and prompts[name]:
            yield from _references(prompts, good, model)


def _references(prompts: dict[str, Any], good: Any, model: Mapping[str, Any]) -> Iterator[Fault]:
    """Have each prompt of text say which images and videos go with it, and how."""
    names, rules = ("references", "mask_strategy"), rules_of(model)
    given = [checkpoints.shipped(prompts[names[0]], model), prompts[names[1]]]
    if not rules.REFERENCES:
        for name, value in zip(names, given, strict=True):
            if value is not None:
                yield Fault(f"prompts.{name}", f"{model['name']} is given words alone", value)
    elif good(*(f"prompts.{name}" for name in names)):
        prompts["text"], found = rules.with_references(prompts["text"], given[0], given[1], model)
        yield from (Fault(f"prompts.{name}", sentence) for name, sentence in found)


def _stage_names(config: Mapping[str, Any], good: Any) -> Iterator[Fault]:
    names = [stage.name for stage in STAGES]
    for key in filter(good, ("until", "redo")):
        asked = config[key] if isinstance(config[key], list) else [config[key]]
        for name in asked:
            if name is not None and name not in names:
                yield Fault(key, f"expected {' or '.join(names)}", name, nearest(name, names))


def _guidance(config: Mapping[str, Any], batches: Sequence[str | None]) -> Iterator[Fault]:
    batch, name = config["sampler"]["guidance_batch"], config["model"]["name"]
    if batch not in batches:
        yield Fault("sampler.guidance_batch", f"expected {' or '.join(map(spell, batches))} with model={name}", batch)
    if config["parallel"]["cfg"] is True and "separate" not in batches:
        yield Fault("parallel.cfg", f"expected false: the branches of guidance of model={name} do not run apart", True)


def _sampler(config: Mapping[str, Any], methods: Sequence[str], explicitly: Explicit) -> Iterator[Fault]:
    from runner.sampler import rules

    sampler = config["sampler"]
    method = sampler["sample_method"]
    if method not in methods:
        expected = f"expected {'one of ' if len(methods) > 1 else ''}{', '.join(methods)}"
        yield Fault("sampler.sample_method", expected, method, nearest(method, methods))
        return
    for name, sentence, value in rules.faults(sampler, "sampler.num_sampling_steps" in explicitly):
        yield Fault(f"sampler.{name}", sentence, value)
    recorded = config["recording"]["steps"]
    for name, sentence, value in rules.search_faults(sampler, recorded, lambda key: f"sampler.{key}" in explicitly):
        yield Fault(f"sampler.{name}", sentence, value)


def _solver(sampler: dict[str, Any], model: Rules, folder: Path) -> Iterator[Fault]:
    """What the solver of a checkpoint that brings its own is not configured for; `model` are the model's rules."""
    from runner.sampler import rules

    try:
        settings = model.solver(folder)
    except ValueError:
        return  # the checkpoint is what is wrong
    if settings is None:
        return
    yield from (Fault(f"sampler.{key}", *rest) for key, *rest in rules.solver_faults(sampler, settings))
    if sampler["videos_path"] is not None:
        sentence = "how a foreign pipeline makes latents of clips is not known; expected null"
        yield Fault("sampler.videos_path", sentence, sampler["videos_path"])


def _cache(config: Mapping[str, Any]) -> Iterator[Fault]:
    from runner.cache import rules

    blocks = checkpoints.blocks(config["model"])
    for name, sentence, value in rules.faults(config["cache"], evaluations(config["sampler"]), blocks):
        yield Fault(f"cache.{name}", sentence, value)
    if rules.searches(config["cache"]):
        if config["dump"]["from"] is not None:
            yield Fault("dump.from", "holds no movement to search a cache on; leave it null", config["dump"]["from"])
        if config["model"].get("loop", 1) > 1:
            yield Fault("model.loop", "expected 1 to search a cache; what is found goes with any number of loops")


# What a vendor's device needs beside torch, and where it comes from.
VENDORS = {
    "npu": ("torch_npu", "pip install 'dit-runner[npu]', and Ascend's CANN beside it"),
    "gcu": ("torch_gcu", "it comes with Enflame's TopsRider"),
}


def _absent(device: str) -> str | None:
    """Why this machine cannot run on a device, as far as that shows without torch."""
    if device in VENDORS:
        package, source = VENDORS[device]
        return None if find_spec(package) else f"{package} is not installed: {source}"
    return _no_cuda() if device == "cuda" else None


def _no_cuda() -> str | None:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver"
    version = metadata.version("torch")
    return f"the installed torch ({version}) is built for the CPU alone" if version.endswith("+cpu") else None
