"""fairseq's translation task with batches capped by grid cells."""

import copy
import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from fairseq.data import BaseWrapperDataset
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf, open_dict

import fairseq_compat
from thoth_core.errors import OptionError

logger = logging.getLogger(__name__)


@dataclass
class PervasiveTranslationConfig(TranslationConfig):
    """The options of ``translation``, and a cap of grid cells."""

    max_grid_cells: Optional[int] = field(
        default=None,
        metadata={
            "help": "cap a batch at this many grid cells: sentences x longest source x longest target. The memory of "
            "Pervasive Attention grows with these, not with tokens; use it together with --max-tokens"
        },
    )


def split_by_cells(
    batches: list[np.ndarray], source_sizes: np.ndarray, target_sizes: np.ndarray, max_cells: int
) -> tuple[list[np.ndarray], int]:
    """Split batches of sentence indices, in order, so that each has at most ``max_cells`` padded grid cells.

    Args:
        source_sizes, target_sizes: tokens of every sentence of the data set.

    Returns:
        the new batches, and the number of sentences that exceed the cap by themselves (each its own batch).
    """
    result: list[np.ndarray] = []
    oversized = 0
    for batch in batches:
        start, longest_source, longest_target = 0, 0, 0
        for position, index in enumerate(batch):
            source, target = int(source_sizes[index]), int(target_sizes[index])
            oversized += source * target > max_cells
            wider = max(longest_source, source), max(longest_target, target)
            if position > start and (position - start + 1) * wider[0] * wider[1] > max_cells:
                result.append(np.asarray(batch[start:position]))
                start, wider = position, (source, target)
            longest_source, longest_target = wider
        result.append(np.asarray(batch[start:]))
    return result, oversized


class GridCellDataset(BaseWrapperDataset):
    """A language pair data set whose batches are capped by grid cells besides tokens and sentences."""

    def __init__(self, dataset: Any, max_cells: int):
        super().__init__(dataset)
        self.max_cells = max_cells

    def __getattr__(self, name: str) -> Any:
        # src_sizes, tgt_sizes, src, tgt, ...: attributes of a language pair that the task and fairseq's commands read
        if name == "dataset":  # not yet set, when unpickled by a data loader's worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def batch_by_size(
        self,
        indices: Any,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """fairseq's batches, split where they exceed the cap."""
        batches = self.dataset.batch_by_size(
            indices,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
        )
        sources = self.dataset.src_sizes
        targets = sources if self.dataset.tgt_sizes is None else self.dataset.tgt_sizes
        multiple = getattr(self.dataset, "pad_to_multiple", 1)  # --required-seq-len-multiple
        sources, targets = (-(-sizes // multiple) * multiple for sizes in (sources, targets))
        batches, oversized = split_by_cells(batches, sources, targets, self.max_cells)
        if oversized:
            logger.warning(
                f"{oversized} sentences have more than --max-grid-cells {self.max_cells} cells by themselves; each is "
                "a batch of its own (drop them with --max-source-positions and --max-target-positions)"
            )
        return batches


@register_task("pervasive_translation", dataclass=PervasiveTranslationConfig)
class PervasiveTranslationTask(TranslationTask):
    """``--task pervasive_translation``: translation with ``--max-grid-cells``."""

    cfg: PervasiveTranslationConfig

    def capped(self, dataset: Any) -> Any:
        """``dataset`` with its batches capped, if there is a cap."""
        cap = self.cfg.max_grid_cells
        return dataset if cap is None else GridCellDataset(dataset, cap)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the task's options to a parser; fairseq is patched from here on."""
        fairseq_compat.install()
        super().add_args(parser)

    @classmethod
    def setup_task(cls, cfg: PervasiveTranslationConfig, **kwargs: Any) -> "PervasiveTranslationTask":
        """Load the dictionaries.

        Raises:
            OptionError: ``--max-grid-cells`` below 1.
        """
        fairseq_compat.install()
        if cfg.max_grid_cells is not None and cfg.max_grid_cells < 1:
            raise OptionError(f"--max-grid-cells must be at least 1, given {cfg.max_grid_cells}")
        return super().setup_task(cfg, **kwargs)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model. A checkpoint contains its embeddings: the files that initialised them may be missing."""
        if from_checkpoint:
            cfg = copy.deepcopy(cfg)
            with open_dict(cfg) if OmegaConf.is_config(cfg) else nullcontext():
                for option in ("encoder_embed_path", "decoder_embed_path"):
                    if getattr(cfg, option, None):
                        setattr(cfg, option, None)
        return super().build_model(cfg, from_checkpoint)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split, its batches capped."""
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        self.datasets[split] = self.capped(self.datasets[split])

    def build_dataset_for_inference(self, src_tokens: Any, src_lengths: Any, constraints: Any = None) -> Any:
        """The data set of ``fairseq-interactive``, its batches capped."""
        return self.capped(super().build_dataset_for_inference(src_tokens, src_lengths, constraints=constraints))
