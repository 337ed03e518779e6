"""What all tests of this folder have in common."""

import pytest
import torch
from fairseq import utils


@pytest.fixture(autouse=True)
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fairseq's attention take its softmax in the dtype of its input; by default it does so in float32."""
    monkeypatch.setattr(utils, "softmax", lambda x, dim, onnx_trace=False: torch.softmax(x, dim))
