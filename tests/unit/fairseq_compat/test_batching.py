"""fairseq drops the last batch; our wrapper keeps it."""

import numpy as np
import pytest
from fairseq.data import data_utils
from hypothesis import given
from hypothesis import strategies as st

from fairseq_compat import batching, patching

# fairseq's own, even where another test of this process has installed ours.
FAIRSEQS = getattr(data_utils.batch_by_size, "__wrapped__", data_utils.batch_by_size)


def lengths_of(sizes: list[int]):
    """num_tokens_fn and num_tokens_vec of sentences of these sizes."""
    vector = np.array(sizes, dtype=np.int64)
    return dict(num_tokens_fn=lambda index: vector[index], num_tokens_vec=vector)


def test_the_fault() -> None:
    batches = FAIRSEQS(np.arange(20), **lengths_of([5] * 20), max_tokens=80, required_batch_size_multiple=8)
    assert sum(map(len, batches)) == 16


@given(
    sizes=st.lists(st.integers(1, 30), max_size=80).map(sorted),
    max_tokens=st.integers(30, 300),
    multiple=st.sampled_from((1, 4, 8)),
)
def test_every_sentence_is_in_a_batch(sizes: list[int], max_tokens: int, multiple: int) -> None:
    batches = batching.keep_last_batch(FAIRSEQS)(
        list(range(len(sizes))),
        **lengths_of(sizes),
        max_tokens=max_tokens,
        required_batch_size_multiple=multiple,
    )
    assert [index for batch in batches for index in batch] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) * max(sizes[index] for index in batch) <= max_tokens


def test_installing_twice_wraps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_utils, "batch_by_size", FAIRSEQS)
    monkeypatch.setattr(data_utils, patching.RECORD, set(), raising=False)
    batching.install()
    wrapped = data_utils.batch_by_size
    assert wrapped is not FAIRSEQS
    batching.install()
    assert data_utils.batch_by_size is wrapped
