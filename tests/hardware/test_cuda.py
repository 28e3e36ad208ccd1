"""What can be said of CUDA where there is none."""

from __future__ import annotations

import pytest
import torch

from runner.hardware import cuda


@pytest.mark.parametrize(("devices", "chosen"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (8, [0, 1, 2])])
def test_each_process_of_a_machine_takes_the_next_device(monkeypatch, devices, chosen):
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank in range(3):
        cuda.choose(rank)
    assert taken == chosen
