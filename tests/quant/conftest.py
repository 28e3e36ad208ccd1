from __future__ import annotations

import pytest
import torch
from quant.toy_dit import ToyDiT


@pytest.fixture
def toy() -> ToyDiT:
    torch.manual_seed(0)
    return ToyDiT().eval()
