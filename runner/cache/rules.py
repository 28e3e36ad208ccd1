"""What the cache section of a configuration may ask for, beyond the types of its keys. No torch: the desk asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.cache import policy
from runner.cache.exhaustive import INTERVAL, least_length
from runner.cache.policy import Config, Rectangle, Segments

KEYS = ("step_start", "step_interval", "block_start", "num_blocks")
FOUND = "cache_config.json"  # what a search writes, and sample applies


def searches(cache: Mapping[str, Any]) -> bool:
    """Whether the configuration of the cache is to be searched."""
    return cache["policy"] != "none" and cache["ratio"] is not None


def chosen(cache: Mapping[str, Any], found: Path | None) -> Config | None:
    """What is to be applied: of the file, of the keys, or what a search left in the folder `found`. None: no reuse."""
    if cache["policy"] == "none":
        return None
    if cache["config"] is not None:
        return policy.read(Path(cache["config"]))
    if searches(cache):
        file = found / FOUND if found else None
        return policy.read(file) if file and file.exists() else None
    return Rectangle(*(cache[key] for key in KEYS))


def faults(cache: Mapping[str, Any], steps: int, blocks: int | None) -> Iterator[tuple[str, str, Any]]:
    """(key, sentence, value) of what cannot work in a run of so many evaluations of a model of so many blocks (None
    where that is not known yet)."""
    kind, keys = cache["policy"], {key: cache[key] for key in KEYS if cache[key] is not None}
    if kind == "none":
        for key in ("config", *KEYS, "ratio", "quality", "save_path"):
            if cache[key] is not None:
                yield key, "is for cache=dit_cache or cache=adaptive; there is no cache here", cache[key]
        return
    ways = [*(["config"] if cache["config"] is not None else []), *(["ratio"] if cache["ratio"] is not None else [])]
    tells = cache["search"] == "exhaustive" and set(keys) == {"step_interval"}  # the one that this search takes
    if keys and not tells:
        ways.append(next(iter(keys)))
    if len(ways) > 1:
        yield ways[1], f"cache.{ways[0]} says which configuration already; give one of the two", cache[ways[1]]
        return
    if not ways:
        yield "policy", f"expected cache.config=FILE, cache.ratio=NUMBER to search one, or {', '.join(KEYS)}", kind
        return
    if cache["ratio"] is None:
        for key in ("quality", "save_path"):
            if cache[key] is not None:
                yield key, "is for a search, which cache.ratio asks for", cache[key]
        if cache["search"] != "recording":
            yield "search", "is for a search, which cache.ratio asks for", cache["search"]
    if ways == ["config"]:
        yield from _of_file(cache, steps, blocks)
    elif ways == ["ratio"]:
        yield from _of_search(cache, steps, blocks)
    else:
        yield from _of_keys(cache, keys, steps, blocks)


def _of_file(cache: Mapping[str, Any], steps: int, blocks: int | None) -> Iterator[tuple[str, str, Any]]:
    try:
        config = policy.read(Path(cache["config"]))
        if blocks is not None:
            config.policy(steps, blocks)
    except ValueError as error:
        yield "config", str(error), cache["config"]
        return
    fits = "adaptive" if isinstance(config, Segments) else "dit_cache"
    if fits != cache["policy"]:
        yield "policy", f"expected {fits}, which is what {cache['config']} holds", cache["policy"]


def _of_keys(
    cache: Mapping[str, Any], keys: Mapping[str, int], steps: int, blocks: int | None
) -> Iterator[tuple[str, str, Any]]:
    if cache["policy"] != "dit_cache":
        yield next(iter(keys)), "is for cache=dit_cache", next(iter(keys.values()))
        return
    for key in KEYS:
        if key not in keys:
            yield key, f"must be given beside {', '.join(keys)}", None
    if len(keys) == len(KEYS) and blocks is not None:
        try:
            Rectangle(**keys).policy(steps, blocks)
        except ValueError as error:
            yield "num_blocks", str(error), keys["num_blocks"]


def _of_search(cache: Mapping[str, Any], steps: int, blocks: int | None) -> Iterator[tuple[str, str, Any]]:
    ratio, quality = cache["ratio"], cache["quality"]
    if ratio == "auto" and quality is None:
        yield "quality", "must be given with cache.ratio=auto: the largest relative error of the latents", None
    if ratio != "auto" and quality is not None:
        yield "quality", "is for cache.ratio=auto", quality
    if cache["search"] != "exhaustive":
        return
    if cache["policy"] != "dit_cache":
        yield "search", "expected recording for cache=adaptive", "exhaustive"
    elif ratio == "auto":
        yield "ratio", "expected a number for cache.search=exhaustive", ratio
    elif blocks is not None:
        try:
            least_length(steps, blocks, ratio, cache["step_interval"] or INTERVAL)
        except ValueError as error:
            yield "search", str(error), "exhaustive"
