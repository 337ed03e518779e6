"""``--optimizer product_key_adam``: Adam for a model with value tables, which updates only the rows that were read.

fairseq builds an optimizer from the parameters that require a gradient, which a table's values do not (see
:mod:`memory_layers.table`). So fairseq's flat buffers, its wrappers for data parallelism and its float32 copies never
hold a table. :mod:`memory_layers.trainer_patches` hands the model to the optimizer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.logging import metrics
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from omegaconf import II
from torch import Tensor, nn

import fairseq_compat
from memory_layers import trainer_patches
from memory_layers.capacity import check_room
from memory_layers.config import OPTIMIZER
from memory_layers.exchange import processes
from memory_layers.row_adam import RowAdam
from memory_layers.table import tables_of
from memory_layers.trainer_patches import TableOptimizer
from thoth_core.errors import UserError

NAME = OPTIMIZER


@dataclass
class ProductKeyAdamConfig(FairseqAdamConfig):
    """Adam's options, and the tables' own; betas and eps are the same for both."""

    memory_lr: float = field(
        default=1e-3, metadata={"help": "learning rate of the memories' values; constant under every scheduler"}
    )
    memory_weight_decay: float = field(
        default=0.0, metadata={"help": "decoupled weight decay of the values, only on rows that are updated"}
    )
    # No float32 copies under these.
    memory_efficient_fp16: bool = II("common.memory_efficient_fp16")
    memory_efficient_bf16: bool = II("common.memory_efficient_bf16")


@register_optimizer(NAME, dataclass=ProductKeyAdamConfig)
class ProductKeyAdam(FairseqAdam, TableOptimizer):
    """Dense parameters as in ``--optimizer adam`` (decoupled weight decay), tables by :class:`RowAdam`.

    The norm that ``--clip-norm`` bounds is that of both together. A model without tables is trained as by ``adam``.
    """

    cfg: ProductKeyAdamConfig

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add Adam's options and the tables'; fairseq's Trainer supports tables from now on."""
        fairseq_compat.install()
        trainer_patches.install()
        super().add_args(parser)

    def __init__(self, cfg: ProductKeyAdamConfig, params: Any) -> None:
        for name in ("memory_lr", "memory_weight_decay"):
            if not getattr(cfg, name) >= 0:
                option = name.replace("_", "-")
                raise UserError(f"--{option} must be at least 0, given {getattr(cfg, name)}")
        super().__init__(cfg, params)
        self.rows = RowAdam([])
        self._scale = 1.0  # factor by which the rows' gradients have yet to be multiplied

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
            bytes_per_value = 8 + 4 * (master and values.dtype in (torch.float16, torch.bfloat16))
            size = bytes_per_value * sum(table.weight.numel() for table in tables)
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
        """Average the gradients of all processes: the dense ones, and those of the rows if ``module`` is the model."""
        _fit_buffer(module)
        super().all_reduce_grads(module)
        tables = self.rows.tables
        if not tables and tables_of(module):
            raise RuntimeError(
                "the optimizer does not know the model's value tables: call memory_layers.trainer_patches.install() "
                "before fairseq builds its Trainer"
            )
        if tables and any(part is tables[0] for part in module.modules()):
            received = self.rows.collect()
            self._scale = 1.0 / processes()
            if processes() > 1:
                # received from other processes for this update, in 1,000 bytes
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
        if self.supports_step_with_scale:  # otherwise the gradients have been multiplied
            self._scale /= float(scale)
        super().step(closure, scale, groups)
        if self.rows.tables:
            self.rows.step(self._scale)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        super().zero_grad()
        self.zero_rows()

    def zero_rows(self) -> None:
        """Forget the gradients of the tables."""
        self.rows.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Adam's state, and that of the tables under ``tables``."""
        return {**super().state_dict(), "tables": self.rows.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            UserError: the state belongs to other tables.
        """
        dense = {name: value for name, value in state_dict.items() if name != "tables"}
        super().load_state_dict(dense, optimizer_overrides)
        try:
            self.rows.load_state_dict(state_dict.get("tables", {"steps": 0, "tables": []}))
        except ValueError as error:
            raise UserError(f"the optimizer's state does not fit: {error}; give --reset-optimizer") from error


def _fit_buffer(module: nn.Module) -> None:
    """Limit the buffer of fairseq's own wrapper for data parallelism to what it reduces: it counts tables too."""
    wrapper = getattr(module, "module", None)
    if isinstance(wrapper, LegacyDistributedDataParallel) and wrapper.buffer is None:
        reduced = sum(parameter.numel() for parameter in wrapper.module.parameters() if parameter.requires_grad)
        wrapper.buffer_size = min(wrapper.buffer_size, reduced)
