"""``--optimizer product_key_adam``: Adam for a model with value tables, whose rows are updated only where read.

fairseq builds an optimizer from the parameters that require a gradient, which a table's values do not (see
:mod:`memory_layers.table`). So fairseq's flat buffers, its wrappers for data parallelism and its float32 copies never
hold a table. :func:`install` hands the model to the optimizer once that is built, inside FP16Optimizer too, and
refuses to train a table with an optimizer that would leave it as it is.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.logging import metrics
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from omegaconf import II
from torch import Tensor, nn

from memory_layers.capacity import check_room
from memory_layers.config import check_backend
from memory_layers.exchange import processes
from memory_layers.product_key import Memory
from memory_layers.row_adam import RowAdam
from memory_layers.table import ValueTable
from thoth_core.errors import UserError

logger = logging.getLogger(__name__)

NAME = "product_key_adam"


@dataclass
class ProductKeyAdamConfig(FairseqAdamConfig):
    """Adam's options, and the tables' own; betas and eps are the same for both."""

    memory_lr: float = field(
        default=1e-3, metadata={"help": "learning rate of the memories' values; constant, whatever the scheduler"}
    )
    memory_weight_decay: float = field(
        default=0.0, metadata={"help": "decoupled weight decay of the values, on the rows that are updated only"}
    )
    # No float32 copies under these.
    memory_efficient_fp16: bool = II("common.memory_efficient_fp16")
    memory_efficient_bf16: bool = II("common.memory_efficient_bf16")


@register_optimizer(NAME, dataclass=ProductKeyAdamConfig)
class ProductKeyAdam(FairseqAdam):
    """Dense parameters as in ``--optimizer adam`` (decoupled weight decay), tables by :class:`RowAdam`.

    The norm that ``--clip-norm`` bounds is that of both together. A model without tables is trained as by ``adam``.
    """

    cfg: ProductKeyAdamConfig

    def __init__(self, cfg: ProductKeyAdamConfig, params: Any) -> None:
        for name in ("memory_lr", "memory_weight_decay"):
            if not getattr(cfg, name) >= 0:
                option = name.replace("_", "-")
                raise UserError(f"--{option} must be at least 0, given {getattr(cfg, name)}")
        super().__init__(cfg, params)
        self.rows = RowAdam([])
        self._scale = 1.0  # what the rows' gradients are still to be multiplied by

    def attach(self, model: nn.Module) -> None:
        """Take the tables of ``model``.

        Raises:
            UserError: their moments do not fit into the memory of their device.
        """
        tables = tables_of(model)
        dense: dict[str, Any] = self.optimizer_config
        master = not (self.cfg.memory_efficient_fp16 or self.cfg.memory_efficient_bf16)
        if tables:
            values = tables[0].weight
            bytes_a_value = 8 + 4 * (master and values.dtype in (torch.float16, torch.bfloat16))
            size = bytes_a_value * sum(table.weight.numel() for table in tables)
            check_room(size, values.device, f"the optimizer's state of {', '.join(map(str, tables))}")
        self.rows = RowAdam(
            tables,
            lr=self.cfg.memory_lr,
            betas=tuple(dense["betas"]),
            eps=dense["eps"],
            weight_decay=self.cfg.memory_weight_decay,
            master=master,
        )

    def all_reduce_grads(self, module: nn.Module) -> None:
        """Reduce dense gradients, and exchange those of the rows if ``module`` is the model; both become means."""
        _fit_buffer(module)
        super().all_reduce_grads(module)
        tables = self.rows.tables
        if tables and any(part is tables[0] for part in module.modules()):
            received = self.rows.collect()
            self._scale = 1.0 / processes()
            if processes() > 1:
                # What this update brought from other processes, in 1,000 bytes.
                metrics.log_scalar("memory_kb_received", received / 1e3, priority=650, round=3)

    def multiply_grads(self, c: float | Tensor) -> None:
        """Multiply all gradients by c."""
        super().multiply_grads(c)
        self._scale *= float(c)

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Scale all gradients down to a common norm of ``max_norm`` (0: do not); returns the norm before."""
        norm = super().clip_grad_norm(0, aggregate_norm_fn)
        if self.rows.tables:
            norm = torch.sqrt(norm.double() ** 2 + self.rows.squared_norm().to(norm.device) * self._scale**2).float()
        if max_norm > 0:
            self.multiply_grads((max_norm / (norm + 1e-6)).clamp_(max=1))
        return norm

    def step(self, closure: Callable[[], Any] | None = None, scale: float = 1.0, groups: Any = None) -> None:
        """Update dense parameters and the rows that were read; gradients count divided by ``scale``."""
        if self.supports_step_with_scale:  # else the gradients are multiplied
            self._scale /= float(scale)
        super().step(closure, scale, groups)
        if self.rows.tables:
            self.rows.step(self._scale)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        super().zero_grad()
        self.rows.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Adam's state, and that of the tables under ``tables``."""
        return {**super().state_dict(), "tables": self.rows.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            UserError: the state of other tables.
        """
        dense = {name: value for name, value in state_dict.items() if name != "tables"}
        super().load_state_dict(dense, optimizer_overrides)
        try:
            self.rows.load_state_dict(state_dict.get("tables", {"steps": 0, "tables": []}))
        except ValueError as error:
            raise UserError(f"the optimizer's state does not fit: {error}; give --reset-optimizer") from error


def tables_of(model: nn.Module) -> list[ValueTable]:
    """The value tables of a model, each once."""
    return [module for module in model.modules() if isinstance(module, ValueTable)]


def _fit_buffer(module: nn.Module) -> None:
    """Let fairseq's own wrapper for data parallelism allocate no more than what it reduces: it counts tables too."""
    wrapper = getattr(module, "module", None)
    if isinstance(wrapper, LegacyDistributedDataParallel) and wrapper.buffer is None:
        reduced = sum(parameter.numel() for parameter in wrapper.module.parameters() if parameter.requires_grad)
        wrapper.buffer_size = min(wrapper.buffer_size, reduced)


def install() -> None:
    """Wrap what `Trainer` does where it must know of tables."""
    from fairseq.trainer import Trainer

    Trainer._build_optimizer = _build_optimizer(Trainer._build_optimizer)
    Trainer.zero_grad = _zero_grad(Trainer.zero_grad)
    Trainer.valid_step = _valid_step(Trainer.valid_step)
    Trainer.save_checkpoint = _save_checkpoint(Trainer.save_checkpoint)
    Trainer.always_call_state_dict_during_save_checkpoint = property(
        _is_saved_together(Trainer.always_call_state_dict_during_save_checkpoint.fget)
    )


def inner_optimizer(optimizer: Any) -> Any:
    """What a mixed-precision optimizer of fairseq's wraps, or the optimizer itself."""
    for name in ("fp32_optimizer", "wrapped_optimizer"):
        optimizer = getattr(optimizer, name, optimizer)
    return optimizer


def _build_optimizer(build_optimizer: Callable[[Any], None]) -> Callable[[Any], None]:
    def build_and_attach(self: Any) -> None:
        tables = tables_of(self.model)
        if tables:
            _check(self.cfg, sharded=any(table.sharded for table in tables))
            check_backend(tables[0].weight)
        self._optimizer = None  # when resuming, the one that is replaced: two would need twice the memory
        build_optimizer(self)
        optimizer = inner_optimizer(self._optimizer)
        if isinstance(optimizer, ProductKeyAdam):
            optimizer.attach(self.model)

    return build_and_attach


def _check(cfg: Any, *, sharded: bool) -> None:
    """Raise UserError for what a model with tables cannot be trained with."""
    name = getattr(cfg.optimizer, "_name", None)
    if name != NAME:
        raise UserError(
            f"a model with memories needs --optimizer {NAME}, given {name}: it would not train their values"
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
    for option, given in refused.items():
        if given:
            raise UserError(f"{option} does not work with memories; leave it out")


def _zero_grad(zero_grad: Callable[[Any], None]) -> Callable[[Any], None]:
    # A mixed-precision optimizer forgets its own gradients only, not those of the one it wraps.
    def zero_rows_too(self: Any) -> None:
        zero_grad(self)
        optimizer = inner_optimizer(self.optimizer)
        if isinstance(optimizer, ProductKeyAdam):
            optimizer.rows.zero_grad()

    return zero_rows_too


def _valid_step(valid_step: Callable[..., Any]) -> Callable[..., Any]:
    # A process that has no batch left is given one again, which is to count in nothing.
    def count_real_batches(self: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        for module in self.model.modules():
            if isinstance(module, Memory):
                module.counts = bool(sample)
        return valid_step(self, sample, *arguments, **options)

    return count_real_batches


def _save_checkpoint(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    # After an error the first process alone would save, and wait for parts that the others do not send.
    def save_with_all_processes(self: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        if Path(filename).name == "crash.pt" and any(table.sharded for table in tables_of(self.model)):
            logger.warning("%s is not written: the table lies on several processes", filename)
            return None
        return save_checkpoint(self, filename, extra_state)

    return save_with_all_processes


def _is_saved_together(always: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def always_with_shards(self: Any) -> bool:
        # The first process saves the whole of a sharded table: all must take part.
        return always(self) or any(table.sharded for table in tables_of(self.model))

    return always_with_shards
