"""Dropout that does not depend on the number of processes.

fairseq seeds every process alike and once an update: with several processes all draw the same masks for
different sentences, and the training differs from the same one with `--update-freq`. Here each batch of an update
has a seed of its own, by its place in the update, so N processes compute what one does with `--update-freq N`.
An update of a single batch draws what it draws in fairseq.
"""

from collections.abc import Callable
from typing import Any

STRIDE = 1_000_003  # between the seeds of an update's batches; updates themselves count up by one


def install() -> None:
    """Wrap `Trainer._set_seed` (called once an update) and `Trainer._prepare_sample` (once a batch)."""
    from fairseq.trainer import Trainer

    Trainer._set_seed = _set_seed(Trainer._set_seed)
    Trainer._prepare_sample = _prepare_sample(Trainer._prepare_sample)


def _set_seed(set_seed: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_seed_and_count(self: Any) -> None:
        set_seed(self)
        self._batches_of_update = 0

    return set_seed_and_count


def _prepare_sample(prepare_sample: Callable[..., Any]) -> Callable[..., Any]:
    from fairseq import utils

    def seed_and_prepare_sample(self: Any, sample: Any, is_dummy: bool = False) -> Any:
        if self._model.training and not is_dummy:  # a dummy comes from within the call for an empty batch
            # Process r of W gets the batches r, r + W, r + 2 W, ... of the update.
            place = self._batches_of_update * self.data_parallel_world_size + self.data_parallel_rank
            self._batches_of_update += 1
            utils.set_torch_seed(self.cfg.common.seed + self.get_num_updates() + STRIDE * place)
        return prepare_sample(self, sample, is_dummy)

    return seed_and_prepare_sample
