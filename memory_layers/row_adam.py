"""Adam on the rows of value tables that were read, and on no others.

Axes as in :mod:`memory_layers.table`. Section 4.1 of the paper: sparse updates with a constant learning rate of
their own. As in torch.optim.SparseAdam the moments of a row do not change while it is not read; bias correction counts
the updates of the whole table. The moments are dense tensors of the table's size, allocated at once.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from memory_layers import ops
from memory_layers.exchange import as_bytes, processes
from memory_layers.row_updates import AdamState, AdamStep, RowGradients
from memory_layers.table import ValueTable


class RowAdam:
    """Updates tables from the row gradients that they have collected.

    :meth:`step` does everything; to clip by a global norm call :meth:`collect` and :meth:`squared_norm` before. The
    moments are float32. A table in half precision has a float32 copy too (``master``), as in fairseq's --fp16.

    Args:
        tables: each once.
        lr, betas, eps: Adam's; eps is added outside the root.
        weight_decay: decoupled; on the rows that are updated only.
        master: keep a float32 copy of tables in half precision; without it their updates are rounded each time.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        tables: Iterable[ValueTable],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        master: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, given {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and less than 1, given {betas}")
        self.tables = list(dict.fromkeys(tables))
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.steps = 0
        self.exp_avg = [_zeros(table) for table in self.tables]
        self.exp_avg_sq = [_zeros(table) for table in self.tables]
        self.master: list[Tensor | None] = [None] * len(self.tables)
        self._keeps_master = master
        self._collected: list[RowGradients] | None = None

    def collect(self) -> int:
        """Take the row gradients that the tables of all processes have collected since the last update.

        Where torch.distributed is initialised this is a collective call. The triples of all processes are
        concatenated in the order of the processes: two processes give the bits that one gives in two batches.

        Returns:
            the bytes received from other processes, including those that sharded tables have received in computing.
        """
        self._collected, received = [], 0
        for table in self.tables:
            rows = table.take_pending()
            if processes() > 1 and not table.sharded:
                rows = _of_all_processes(rows, table)
            received += table.exchange.received
            table.exchange.received = 0
            self._collected.append(rows)
        return received

    def squared_norm(self) -> Tensor:
        """Squared Euclidean norm of the collected row gradients: a scalar, the same on every process."""
        if not self.tables:
            return torch.zeros(())
        total = torch.zeros((), dtype=torch.float64, device=self.tables[0].weight.device)
        shared = torch.zeros_like(total)
        for table, rows in zip(self.tables, self._rows(), strict=True):
            norm = ops.rows_squared_norm(rows, table.n_slots, backend=table.backend).to(total)
            if table.sharded:
                shared += norm
            else:
                total += norm
        if any(table.sharded for table in self.tables):
            dist.all_reduce(shared)
        return total + shared

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Update the rows that were read, with ``scale`` times their gradient; then forget it."""
        self.steps += 1
        numbers = AdamStep(scale, self.lr, *self.betas, self.eps, self.weight_decay, self.steps)
        for i, (table, rows) in enumerate(zip(self.tables, self._rows(), strict=True)):
            values = table.weight.detach()
            if self.master[i] is None and self._keeps_master and values.dtype in (torch.float16, torch.bfloat16):
                self.master[i] = values.float()
            state = AdamState(self.exp_avg[i], self.exp_avg_sq[i], self.master[i])
            ops.rows_adam_(values, state, rows, numbers, backend=table.backend)
        self._collected = None

    def zero_grad(self) -> None:
        """Forget the row gradients."""
        self._collected = None
        for table in self.tables:
            table.pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """Moments (n_slots, V), float32 copies and the number of updates; collective where a table is sharded."""
        tables = []
        for i, table in enumerate(self.tables):
            state = {"exp_avg": self.exp_avg[i], "exp_avg_sq": self.exp_avg_sq[i]}
            master = self.master[i]
            if master is not None:
                state["master"] = master
            tables.append({name: table.all_columns(value) for name, value in state.items()})
        return {"steps": self.steps, "tables": tables}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`, on any number of processes.

        Raises:
            ValueError: the state belongs to other tables.
        """
        shapes = [tuple(table["exp_avg"].shape) for table in state["tables"]]
        expected = [(table.n_slots, table.dim) for table in self.tables]
        if shapes != expected:
            raise ValueError(f"the state must be that of tables of {expected} slots and dimensions, given {shapes}")
        self.steps = int(state["steps"])
        for i, (table, saved) in enumerate(zip(self.tables, state["tables"], strict=True)):
            self.exp_avg[i].copy_(table.own_columns(saved["exp_avg"]))
            self.exp_avg_sq[i].copy_(table.own_columns(saved["exp_avg_sq"]))
            self.master[i] = None
            if self._keeps_master and "master" in saved and table.weight.dtype != torch.float32:
                self.master[i] = torch.empty_like(self.exp_avg[i]).copy_(table.own_columns(saved["master"]))

    def _rows(self) -> list[RowGradients]:
        if self._collected is None:
            self.collect()
        assert self._collected is not None
        return self._collected


def _zeros(table: ValueTable) -> Tensor:
    """Moments of a table, in float32 or better."""
    return torch.zeros_like(table.weight, dtype=torch.promote_types(table.weight.dtype, torch.float32))


def _of_all_processes(rows: RowGradients, table: ValueTable) -> RowGradients:
    """Join the triples of all processes. For each token, grad, slots (as int32) and weights are exchanged."""
    bag = torch.tensor([rows.slots.size(1)], device=rows.slots.device)
    dist.all_reduce(bag, op=dist.ReduceOp.MAX)
    grad, slots, weights = rows.widened(int(bag))
    # The dtype of the weights must not depend on whether this process has any.
    weights = weights.to(torch.promote_types(table.weight.dtype, torch.float32))
    columns = [grad.contiguous(), slots.to(torch.int32), weights.contiguous()]
    widths = [part.size(1) * part.element_size() for part in columns]
    packed = torch.cat([as_bytes(part).view(-1, width) for part, width in zip(columns, widths, strict=True)], dim=1)
    gathered = torch.cat(table.exchange.all_gather(packed)).split(widths, dim=1)
    grad, slots, weights = (
        part.clone(memory_format=torch.contiguous_format).view(like.dtype)
        for part, like in zip(gathered, columns, strict=True)
    )
    return RowGradients(grad, slots.to(torch.int64), weights)
