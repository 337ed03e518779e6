"""The choice of a backend: its names, its log line, and what happens where the extension is missing."""

import importlib.util
import logging
import pickle
import shutil

import pytest
import torch

from attn2d import backend as module
from attn2d import ops
from attn2d.backend import BACKENDS, Backend, select


def test_selecting_a_backend_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="attn2d.backend"):
        assert select("torch") is Backend.TORCH
    assert [record.message for record in caplog.records] == ["grid operators: torch"]
    assert [select(name).value for name in BACKENDS] == ["auto", "native", "torch"]
    with pytest.raises(ValueError, match="auto, native, torch"):
        select("cuda")


def test_unsupported_dtypes():
    half = torch.ones(3, dtype=torch.float16)
    with pytest.raises(TypeError, match="float16"):
        ops.dropout(half, p=0.1, backend=Backend.NATIVE)
    for backend in (Backend.AUTO, Backend.TORCH):
        assert ops.dropout(half, p=0.1, backend=backend).dtype == torch.float16


def test_native_without_the_extension_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "BUILT", False)
    with pytest.raises(RuntimeError, match="pip install"):
        select("native")
    assert not select("auto").is_native_for(torch.ones(1))
    assert ops.dropout(torch.ones(10), p=0.5).shape == (10,)


def test_a_backend_stays_itself_when_copied_to_another_process():
    assert pickle.loads(pickle.dumps(Backend.NATIVE)) is Backend.NATIVE


def test_an_extension_of_another_pytorch_is_refused_by_name(tmp_path):
    (tmp_path / "_C.so").write_bytes(b"not a library")
    copy = shutil.copy(module.__file__, tmp_path / "backend.py")
    spec = importlib.util.spec_from_file_location("backend_beside_a_broken_library", copy)
    with pytest.raises(ImportError, match="does not fit PyTorch"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
