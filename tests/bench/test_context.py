"""What a worker keeps loaded from one run to the next."""

import copy
from pathlib import Path

import pytest

from runner import model as models
from runner.bench import context as room
from runner.bench.context import Bench


@pytest.fixture
def config(tiny_checkpoint: Path) -> dict:
    model = {"name": "osp12", "checkpoint": str(tiny_checkpoint), "dtype": "fp32"}
    return {
        "model": model,
        "sampler": {"sample_method": "EulerDiscrete"},
        "hardware": {"device": "cpu", "offload": False, "compute": "fp32", "layerwise_casting": False},
        "quant": {"scheme": "w8a8"},
    }


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """What has been read from disk, in order."""
    seen: list[str] = []

    def counted(name, function):
        def counting(*arguments):
            seen.append(name)
            return function(*arguments)

        return counting

    monkeypatch.setattr(models, "load_pipeline", counted("pipeline", models.load_pipeline))
    load_transformer = models.load_transformer
    monkeypatch.setattr(models, "load_transformer", counted("float", load_transformer))
    quantized = counted("quantized", lambda config, export: load_transformer(config["model"], "cpu"))
    monkeypatch.setattr(room, "quantized_transformer", quantized)
    return seen


def test_the_same_model_is_read_once(config, read):
    bench = Bench()
    pipeline = bench.pipeline(config)
    assert bench.pipeline({**copy.deepcopy(config), "seed": 5}) is pipeline
    assert read == ["float", "pipeline"]
    other = copy.deepcopy(config)
    other["model"]["dtype"] = "bf16"
    assert bench.pipeline(other) is not pipeline
    assert read == ["float", "pipeline"] * 2


def test_a_quantized_transformer_takes_the_float_one_s_place_and_the_rest_stays(config, read, tmp_path):
    bench = Bench()
    first = bench.pipeline(config)
    encoder, transformer = first.text_encoder, first.transformer
    second = bench.quantized(config, tmp_path)
    assert second.text_encoder is encoder and second.transformer is not transformer
    assert not any(p.requires_grad for p in second.transformer.parameters())
    third = bench.pipeline(config)
    assert third.text_encoder is encoder
    assert read == ["float", "pipeline", "quantized", "float"]


def test_nothing_is_kept_of_a_transformer_that_could_not_be_read(config, read, monkeypatch, tmp_path):
    bench = Bench()
    bench.pipeline(config)

    def fails(*arguments):
        raise OSError("no such file")

    monkeypatch.setattr(room, "quantized_transformer", fails)
    with pytest.raises(OSError, match="no such file"):
        bench.quantized(config, tmp_path)
    assert bench.pipeline(config).transformer is not None
