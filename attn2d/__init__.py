"""Pervasive Attention as a fairseq plugin: ``fairseq-train --user-dir attn2d --arch pervasive ...``.

Elbayad, Besacier, Verbeek: *Pervasive Attention: 2D Convolutional Neural Networks for Sequence-to-Sequence
Prediction*, CoNLL 2018 (arXiv 1808.03867). A 2-D convolutional network over the grid of source and target
positions takes the place of encoder, decoder and attention.

The networks and operators (``attn2d.convnet``, ``attn2d.aggregators``, ``attn2d.ops``, ...) are plain PyTorch and load
without fairseq.
"""

import sys
from importlib import import_module
from typing import Any

__all__ = ["PervasiveModel", "PervasiveTranslationTask", "register"]

_MODULES = {"PervasiveModel": "attn2d.model", "PervasiveTranslationTask": "attn2d.task"}


def register() -> None:
    """Register the models and the task with fairseq, by importing the modules that define them."""
    for module in _MODULES.values():
        import_module(module)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(import_module(_MODULES[name]), name)


# fairseq imports this package for --user-dir, and in the processes that it starts.
if "fairseq" in sys.modules:
    register()
