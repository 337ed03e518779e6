"""Product-key memory layers in plain PyTorch, and a fairseq plugin: ``fairseq-train --user-dir memory_layers ...``.

Lample, Sablayrolles, Ranzato, Denoyer, Jégou: *Large Memory Layers with Product Keys*, NeurIPS 2019 (arXiv
1907.05242). A layer's feed-forward is replaced by a table of values, of which each token reads a few rows.
"""

import sys
from typing import Any

from memory_layers.product_key import FlatKeyMemory, ProductKeyMemory
from memory_layers.row_adam import RowAdam
from memory_layers.table import ValueTable

__all__ = [
    "FlatKeyMemory",
    "MemoryTransformerLanguageModel",
    "MemoryTransformerModel",
    "ProductKeyMemory",
    "RowAdam",
    "ValueTable",
    "register",
]


def register() -> None:
    """Register the models and the optimizer with fairseq."""
    from memory_layers import model, optim  # noqa: F401  (the imports register)


def __getattr__(name: str) -> Any:
    """fairseq's models, which are imported when they are first used."""
    if name in ("MemoryTransformerLanguageModel", "MemoryTransformerModel"):
        from memory_layers import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# fairseq imports this package for --user-dir, and in processes that it starts.
if "fairseq" in sys.modules:
    register()
