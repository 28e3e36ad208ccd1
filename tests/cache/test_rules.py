"""What of a cache section is refused, and with which sentence."""

import json

import pytest

from runner.cache.policy import Rectangle, Segment, Segments, write
from runner.cache.rules import chosen, faults

NONE = {
    "policy": "none", "config": None, "step_start": None, "step_interval": None, "block_start": None,
    "num_blocks": None, "ratio": None, "quality": None, "search": "recording", "save_path": None,
}  # fmt: skip
KEYS = {"step_start": 1, "step_interval": 2, "block_start": 0, "num_blocks": 3}


def found(policy="dit_cache", blocks=4, **keys):
    return {key: sentence for key, sentence, _ in faults({**NONE, "policy": policy, **keys}, 10, blocks)}


@pytest.mark.parametrize(
    ("policy", "keys"),
    [
        ("none", {}),
        ("dit_cache", KEYS),
        ("dit_cache", {"ratio": 1.3, "save_path": "x.json"}),
        ("adaptive", {"ratio": 1.3}),
        ("dit_cache", {"ratio": "auto", "quality": 0.1}),
        ("dit_cache", {"ratio": 1.1, "search": "exhaustive"}),
        ("dit_cache", {"ratio": 1.2, "search": "exhaustive", "step_interval": 3}),
    ],
)
def test_what_goes(policy, keys):
    assert found(policy, **keys) == {}


@pytest.mark.parametrize(
    ("policy", "keys", "key", "says"),
    [
        ("none", {"num_blocks": 3}, "num_blocks", "there is no cache here"),
        ("dit_cache", {}, "policy", "expected cache.config=FILE, cache.ratio=NUMBER"),
        ("dit_cache", {**KEYS, "ratio": 1.3}, "step_start", "cache.ratio says which configuration already"),
        ("dit_cache", {"config": "a.json", "ratio": 1.3}, "ratio", "cache.config says which configuration already"),
        ("dit_cache", {"step_start": 1}, "num_blocks", "must be given beside step_start"),
        ("dit_cache", {**KEYS, "num_blocks": 5}, "num_blocks", "blocks 0 to 4 are to be reused; the model has 4"),
        ("adaptive", KEYS, "step_start", "is for cache=dit_cache"),
        ("dit_cache", {**KEYS, "save_path": "x"}, "save_path", "is for a search"),
        ("dit_cache", {**KEYS, "search": "exhaustive"}, "search", "is for a search"),
        ("dit_cache", {"ratio": "auto"}, "quality", "must be given with cache.ratio=auto"),
        ("dit_cache", {"ratio": 1.3, "quality": 0.1}, "quality", "is for cache.ratio=auto"),
        ("adaptive", {"ratio": 1.3, "search": "exhaustive"}, "search", "expected recording"),
        ("dit_cache", {"ratio": "auto", "quality": 1.0, "search": "exhaustive"}, "ratio", "expected a number"),
        ("dit_cache", {"ratio": 2.0, "search": "exhaustive"}, "search", "needs at least one and fewer than all"),
        ("dit_cache", {"config": "nowhere.json"}, "config", "cannot be read"),
    ],
)
def test_what_does_not_go(policy, keys, key, says):
    assert says in found(policy, **keys)[key]


def test_a_file_must_fit_the_model_and_the_policy(tmp_path):
    file = tmp_path / "c.json"
    write(Rectangle(1, 2, 2, 3), file)
    assert "the model has 4" in found(config=str(file))["config"]
    assert found(config=str(file), blocks=None) == {}  # the bench will know
    write(Segments(9, (Segment(1, 2, 0, 3),)), file)
    assert "for 9 steps; this run has 10" in found("adaptive", config=str(file))["config"]
    write(Segments(10, (Segment(1, 2, 0, 3),)), file)
    assert found("adaptive", config=str(file)) == {} and "expected adaptive" in found(config=str(file))["policy"]


def test_what_is_applied(tmp_path):
    assert chosen(NONE, tmp_path) is None
    assert chosen({**NONE, "policy": "dit_cache", **KEYS}, None) == Rectangle(1, 2, 0, 3)
    searched = {**NONE, "policy": "dit_cache", "ratio": 1.3}
    assert chosen(searched, tmp_path) is None  # the search found nothing
    (tmp_path / "cache_config.json").write_text(json.dumps(Rectangle(2, 2, 1, 1).to_json()))
    assert chosen(searched, tmp_path) == Rectangle(2, 2, 1, 1)
