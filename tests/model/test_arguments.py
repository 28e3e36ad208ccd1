"""Calls of a model go to files and come back as they were, whatever they hold."""

import pytest
import torch

from runner.model.arguments import flatten, moved, restore


def test_nested_arguments_come_back():
    a, b, c = (torch.full((2,), float(i)) for i in range(3))
    given = {"hidden_states": a, "rotary": (b, [c, None]), "scale": (1.0, 2), "kwargs": {"x": {"y": b}}, "mask": None}
    tensors, outline = flatten(given)
    assert sorted(tensors) == ["hidden_states", "kwargs.x.y", "rotary.0", "rotary.1.0"]
    found = restore(tensors, outline)
    assert found.keys() == given.keys() - {"mask"}  # what is None is as good as not given
    assert found["rotary"][0] is b and found["rotary"][1][0] is c and found["rotary"][1][1] is None
    assert found["scale"] == (1.0, 2) and isinstance(found["rotary"], tuple) and found["kwargs"]["x"]["y"] is b


def test_what_no_file_holds_is_refused_by_name():
    with pytest.raises(TypeError, match="is called with processor.0 of type object"):
        flatten({"processor": [object()]})


def test_moving_keeps_integers():
    value = moved({"a": (torch.ones(1), torch.ones(1, dtype=torch.int64)), "b": 3}, "cpu", torch.bfloat16)
    assert value["a"][0].dtype == torch.bfloat16 and value["a"][1].dtype == torch.int64 and value["b"] == 3
