"""No sentence is left out of the batches.

fairseq's ``batch_by_size`` discards the last batch when its size is not a multiple of
``--required-batch-size-multiple`` (8 by default): training, validation and ``fairseq-generate`` then silently lack
up to a whole batch. Sentences are sorted by length, so it holds the longest ones.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from fairseq.data import data_utils

from fairseq_compat import patching

BatchBySize = Callable[..., Any]


def keep_last_batch(batch_by_size: BatchBySize) -> BatchBySize:
    """A ``batch_by_size`` that returns fairseq's batches, and the last one where fairseq dropped it."""

    @functools.wraps(batch_by_size)
    def batch_all(indices: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64)
        if not len(indices):
            return []
        batches = list(batch_by_size(indices, *args, **kwargs))
        kept = sum(len(batch) for batch in batches)
        if kwargs.get("fixed_shapes") is None and kept < len(indices):
            batches.append(indices[kept:])
        return batches

    return batch_all


def install() -> None:
    """Wrap fairseq's ``batch_by_size``."""
    patching.replace(data_utils, "batch_by_size", keep_last_batch)
