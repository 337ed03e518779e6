"""Wrappers of fairseq's Trainer for models with value tables, which fairseq's optimizers do not see.

:func:`install` applies them when such a model, or its optimizer, is set up. The wrapped Trainer

- hands the model to the optimizer as soon as that is built, inside FP16Optimizer too, and refuses an optimizer that
  would leave the tables as they are;
- forgets the rows' gradients together with all others;
- excludes repeated batches, which fairseq gives to processes that have none left, from a validation's slot usage;
- lets all processes take part where a sharded table is saved.
"""

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq.trainer import Trainer
from torch import nn

from fairseq_compat import patching
from memory_layers.config import OPTIMIZER, check_backend
from memory_layers.exchange import processes
from memory_layers.table import tables_of
from memory_layers.usage_recording import ignored_batch
from thoth_core.errors import UserError

logger = logging.getLogger(__name__)


class TableOptimizer(ABC):
    """An optimizer that trains value tables."""

    @abstractmethod
    def attach(self, model: nn.Module) -> None:
        """Take the tables of ``model``."""

    @abstractmethod
    def zero_rows(self) -> None:
        """Forget the gradients of the tables."""


def install(trainer: type = Trainer) -> None:
    """Wrap the methods of ``trainer``; calling it again changes nothing."""
    patching.replace(trainer, "_build_optimizer", _build_optimizer)
    patching.replace(trainer, "zero_grad", _zero_grad)
    patching.replace(trainer, "valid_step", _valid_step)
    patching.replace(trainer, "save_checkpoint", _save_checkpoint)
    patching.replace(trainer, "always_call_state_dict_during_save_checkpoint", _is_saved_together)


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer that a mixed-precision optimizer of fairseq wraps, or the optimizer itself."""
    for name in ("fp32_optimizer", "wrapped_optimizer"):
        optimizer = getattr(optimizer, name, optimizer)
    return optimizer


def _build_optimizer(build_optimizer: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(build_optimizer)
    def build_and_attach(self: Any) -> None:
        tables = tables_of(self.model)
        if tables:
            check(self.cfg, sharded=any(table.sharded for table in tables))
            check_backend(tables[0])
        self._optimizer = None  # the one that resuming replaces: two would need twice the memory
        build_optimizer(self)
        optimizer = inner_optimizer(self._optimizer)
        if isinstance(optimizer, TableOptimizer):
            optimizer.attach(self.model)

    return build_and_attach


def check(cfg: Any, *, sharded: bool) -> None:
    """Raise UserError for an option that does not work with value tables."""
    name = getattr(cfg.optimizer, "_name", None)
    if name != OPTIMIZER:
        raise UserError(
            f"a model with memories needs --optimizer {OPTIMIZER}, given {name}: it would not train their values"
        )
    parallel = cfg.distributed_training
    dropped = [part for part in ("encoder", "decoder") if getattr(cfg.model, f"{part}_layerdrop", 0)]
    if sharded and dropped:
        raise UserError(
            f"--{dropped[0]}-layerdrop does not work with --memory-sharded: the processes would drop different layers, "
            "and wait for each other; leave one of them out"
        )
    backends = ("pytorch_ddp", "c10d", "legacy_ddp", "no_c10d")
    if processes() > 1 and parallel.ddp_backend not in backends:
        raise UserError(
            f"--ddp-backend must be one of {', '.join(backends)} for memories, given {parallel.ddp_backend}"
        )
    refused = {
        "--amp (use --bf16 or --fp16)": cfg.common.amp,
        "--tpu": cfg.common.tpu,
        "--use-bmuf": cfg.optimization.use_bmuf,
        "--zero-sharding (use --memory-sharded)": parallel.zero_sharding != "none",
        "--pipeline-model-parallel": parallel.pipeline_model_parallel,
        # The processes must agree on when they gather a sharded table.
        "--no-last-checkpoints (beside --memory-sharded)": sharded and cfg.checkpoint.no_last_checkpoints,
        # It would gather the table in every process, for each update.
        "--store-ema (beside --memory-sharded)": sharded and cfg.ema.store_ema,
    }
    for option, is_set in refused.items():
        if is_set:
            raise UserError(f"{option} does not work with memories; leave it out")


def _zero_grad(zero_grad: Callable[[Any], None]) -> Callable[[Any], None]:
    # A mixed-precision optimizer forgets its own gradients only, not those of the one it wraps.
    @functools.wraps(zero_grad)
    def zero_rows_too(self: Any) -> None:
        zero_grad(self)
        optimizer = inner_optimizer(self.optimizer)
        if isinstance(optimizer, TableOptimizer):
            optimizer.zero_rows()

    return zero_rows_too


def _valid_step(valid_step: Callable[..., Any]) -> Callable[..., Any]:
    # fairseq repeats a batch in a process that has none left; it must not count.
    @functools.wraps(valid_step)
    def count_real_batches(self: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        if sample:
            return valid_step(self, sample, *arguments, **options)
        with ignored_batch():
            return valid_step(self, sample, *arguments, **options)

    return count_real_batches


def _save_checkpoint(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    # After an error the first process alone would save, and wait for parts that the others do not send.
    @functools.wraps(save_checkpoint)
    def save_with_all_processes(self: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        if Path(filename).name == "crash.pt" and any(table.sharded for table in tables_of(self.model)):
            logger.warning("%s is not written: the table lies on several processes", filename)
            return None
        return save_checkpoint(self, filename, extra_state)

    return save_with_all_processes


def _is_saved_together(always: property) -> property:
    def always_with_shards(self: Any) -> bool:
        # The first process saves the whole of a sharded table: all must take part.
        return always.__get__(self) or any(table.sharded for table in tables_of(self.model))

    return property(always_with_shards)
