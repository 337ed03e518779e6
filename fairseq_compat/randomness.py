"""Dropout that does not depend on the number of processes.

fairseq sets the same seed in every process, once per update: several processes draw the same masks for different
sentences, and the training differs from the same one with `--update-freq`. Here each batch of an update has its own
seed, which depends on its position in the update, so N processes compute what one computes with `--update-freq N`.
An update of a single batch draws what it draws in fairseq.
"""

from collections.abc import Callable
from typing import Any

from fairseq_compat import patching

STRIDE = 1_000_003  # between the seeds of an update's batches; updates themselves count up by one


def install() -> None:
    """Wrap `Trainer._set_seed` (called once per update) and `Trainer._prepare_sample` (once per batch)."""
    from fairseq.trainer import Trainer

    patching.replace(Trainer, "_set_seed", _set_seed)
    patching.replace(Trainer, "_prepare_sample", _prepare_sample)


def _set_seed(set_seed: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_seed_and_count(self: Any) -> None:
        set_seed(self)
        self._batches_of_update = 0

    return set_seed_and_count


def _prepare_sample(prepare_sample: Callable[..., Any]) -> Callable[..., Any]:
    from fairseq import utils

    def seed_and_prepare_sample(self: Any, sample: Any, is_dummy: bool = False) -> Any:
        if self._model.training and not is_dummy:  # fairseq prepares a dummy within the call for an empty batch
            # Process r of W gets the batches r, r + W, r + 2 W, ... of the update.
            position = self._batches_of_update * self.data_parallel_world_size + self.data_parallel_rank
            self._batches_of_update += 1
            utils.set_torch_seed(self.cfg.common.seed + self.get_num_updates() + STRIDE * position)
        return prepare_sample(self, sample, is_dummy)

    return seed_and_prepare_sample
