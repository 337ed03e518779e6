"""Depth-Adaptive Transformer, a fairseq plugin: ``fairseq-train --user-dir depth_adaptive ...``.

Elbayad, Gu, Grave, Auli: *Depth-Adaptive Transformer*, ICLR 2020 (arXiv 1910.10073). A Transformer whose decoder may
stop after any block, token by token.

The modules ``halting``, ``oracles``, ``losses``, ``flops``, ``calibration`` and ``ops`` are plain PyTorch and load no
fairseq. The model and the criterion are registered when fairseq imports this package. A program that imports this
package before fairseq calls :func:`register` once it has imported fairseq.
"""

import sys
from importlib import import_module
from typing import Any

__all__ = ["DepthAdaptiveCriterion", "DepthAdaptiveTransformerModel", "register"]

_MODULES = {
    "DepthAdaptiveCriterion": "depth_adaptive.criterion",
    "DepthAdaptiveTransformerModel": "depth_adaptive.model",
}


def register() -> None:
    """Register the model, its architectures and the criterion with fairseq. Calling it again changes nothing."""
    for module in _MODULES.values():
        import_module(module)


def __getattr__(name: str) -> Any:
    """Import the classes that need fairseq on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


# fairseq imports the package for --user-dir, and a process that it spawns when it unpickles the configuration.
if "fairseq" in sys.modules:
    register()
