"""No sentence is left out of the batches.

fairseq's ``batch_by_size`` throws the last batch away when its size is no multiple of
``--required-batch-size-multiple`` (8 unless told): training, validation and ``fairseq-generate`` then silently lack
up to a whole batch, which, sentences being sorted by length, holds the longest ones.
"""

from typing import Any

import numpy as np
from fairseq.data import data_utils

_host_batch_by_size = data_utils.batch_by_size


def batch_by_size(indices: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """fairseq's batches of ``indices``, and the last one when fairseq dropped it."""
    if not isinstance(indices, np.ndarray):
        indices = np.fromiter(indices, dtype=np.int64)
    if not len(indices):
        return []
    batches = list(_host_batch_by_size(indices, *args, **kwargs))
    kept = sum(len(batch) for batch in batches)
    if kwargs.get("fixed_shapes") is None and kept < len(indices):
        batches.append(indices[kept:])
    return batches


def install() -> None:
    """Put :func:`batch_by_size` in the place of fairseq's."""
    data_utils.batch_by_size = batch_by_size
