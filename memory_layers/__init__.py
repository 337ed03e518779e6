"""Product-key memory layers, also as a fairseq plugin: ``fairseq-train --user-dir memory_layers ...``.

Lample, Sablayrolles, Ranzato, Denoyer, Jégou: *Large Memory Layers with Product Keys*, NeurIPS 2019 (arXiv
1907.05242). A layer's feed-forward is replaced by a table of values, of which each token reads a few rows.
"""

import fairseq_compat

fairseq_compat.install()

from memory_layers import optim  # noqa: E402  (registration needs the mended host)
from memory_layers.model import MemoryTransformerLanguageModel, MemoryTransformerModel  # noqa: E402
from memory_layers.product_key import FlatKeyMemory, ProductKeyMemory  # noqa: E402
from memory_layers.row_adam import RowAdam  # noqa: E402
from memory_layers.table import ValueTable  # noqa: E402

optim.install()

__all__ = [
    "FlatKeyMemory",
    "MemoryTransformerLanguageModel",
    "MemoryTransformerModel",
    "ProductKeyMemory",
    "RowAdam",
    "ValueTable",
]
