"""Batches capped by grid cells."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from attn2d.config import PervasiveConfig
from attn2d.task import GridCellDataset, PervasiveTranslationTask, split_by_cells
from tests.support.attn2d_models import dictionary

lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


@given(sizes=lengths, cap=st.integers(1, 5000), batch=st.integers(1, 60))
def test_batches_stay_under_the_cap(sizes: list[tuple[int, int]], cap: int, batch: int) -> None:
    """No sentence is lost or reordered, none but a single one exceeds the cap, and no two neighbours of one batch
    could have stayed together."""
    source, target = (np.array(column) for column in zip(*sizes, strict=True))
    order = np.arange(len(sizes))
    given_batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    batches, oversized = split_by_cells(given_batches, source, target, cap)

    def cells(indices: np.ndarray) -> int:
        return len(indices) * source[indices].max() * target[indices].max()

    assert np.concatenate(batches).tolist() == order.tolist()
    assert all(cells(indices) <= cap or len(indices) == 1 for indices in batches)
    assert oversized == sum(s * t > cap for s, t in sizes)
    for before, after in itertools.pairwise(batches):
        if after[0] % batch:  # split within one of the given batches
            assert cells(np.append(before, after[0])) > cap


def test_without_need_nothing_is_split() -> None:
    batches, oversized = split_by_cells([np.arange(5)], np.full(5, 3), np.full(5, 4), 60)
    assert [indices.tolist() for indices in batches] == [[0, 1, 2, 3, 4]]
    assert oversized == 0


def test_padding_to_a_multiple_counts() -> None:
    """--required-seq-len-multiple 8 makes cells of 9 x 9 tokens 16 x 16."""
    batches = [np.arange(10)]
    for multiple, count in ((1, 1), (8, 4)):
        pairs: Any = SimpleNamespace(
            src_sizes=np.full(10, 9),
            tgt_sizes=np.full(10, 9),
            pad_to_multiple=multiple,
            batch_by_size=lambda *_, **__: batches,
        )
        assert len(GridCellDataset(pairs, 810).batch_by_size(None)) == count


def test_a_checkpoint_needs_no_embedding_files() -> None:
    """They are in the checkpoint; the files may be gone."""
    words = dictionary()
    task = PervasiveTranslationTask(SimpleNamespace(eval_bleu=False), words, words)
    config = PervasiveConfig(
        encoder_embed_path="/nowhere/vectors", convnet_layers=1, max_source_positions=64, max_target_positions=64
    )
    settings = {**vars(config), "_name": "pervasive"}
    cfg = OmegaConf.create({"model": settings}).model  # as fairseq has it, part of the whole configuration
    with pytest.raises(ValueError, match="cannot read the embeddings"):
        task.build_model(cfg)
    task.build_model(cfg, from_checkpoint=True)
    assert cfg.encoder_embed_path == "/nowhere/vectors"
