"""The table of values: it is read by weighted sums of rows, and never gets a gradient of its own size.

Axes: T tokens, H heads, K selected slots per head, bag = H·K, n_slots rows, V value dimension.

The gradient of the table stays in factors (:class:`memory_layers.row_updates.RowGradients`): token t adds
weights[t, b] · grad[t] to row slots[t, b]. Every backward pass appends such a triple to ``ValueTable.pending``;
:class:`memory_layers.row_adam.RowAdam` exchanges the triples between processes and applies them. PyTorch's sparse
gradients would hold T·bag rows of V instead.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memory_layers import ops
from memory_layers.exchange import Exchange, processes
from memory_layers.row_updates import RowGradients


def _outside_graphs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.compiler.disable``, which imports the compiler only when a graph is being traced: that takes seconds."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*arguments)
        return function(*arguments)

    return call


class ValueTable(nn.Module):
    """``weight`` (n_slots, V), drawn from a normal distribution of variance 1/V (the paper's appendix).

    ``weight`` requires no gradient as far as PyTorch knows, so no optimizer, no wrapper for data parallelism and no
    flat buffer takes it. In training mode, every backward pass through :meth:`bag` or :meth:`lookup` appends its
    triple to ``pending`` instead. Several layers may use one table.

    Args:
        n_slots: rows.
        dim: V.
        sharded: with several processes (torch.distributed initialised), each keeps V / processes columns of every
            row. All processes must then call the table in lockstep, each with its own tokens. Making a state dict is
            a collective call; the first process's holds the whole table, the others' no row of it.
        backend: implementation of all operators on this table (:mod:`memory_layers.ops`).

    Raises:
        ValueError: a size below 1, V not a multiple of the number of processes that share it, or no such backend.
        RuntimeError: the backend's kernels are not built.
    """

    def __init__(
        self,
        n_slots: int,
        dim: int,
        *,
        sharded: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if n_slots < 1 or dim < 1:
            raise ValueError(f"a table needs at least one slot and one dimension, given {n_slots} x {dim}")
        ops.check_available(backend)
        self.n_slots = n_slots
        self.dim = dim
        self.backend = backend
        self.shards = processes() if sharded else 1
        if dim % self.shards:
            raise ValueError(
                f"the value dimension must be a multiple of the {self.shards} processes that share it, given {dim}"
            )
        width = dim // self.shards
        first = width * dist.get_rank() if self.sharded else 0
        self.columns = slice(first, first + width)
        self.weight = nn.Parameter(torch.empty(n_slots, width, device=device, dtype=dtype), requires_grad=False)
        self.pending: list[RowGradients] = []
        self.exchange = Exchange()
        self._gathered: weakref.ref[Tensor] | None = None
        self.reset_parameters()

    @property
    def sharded(self) -> bool:
        """Whether other processes hold the other columns."""
        return self.shards > 1

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the values; a shard's are the columns of what one process would draw."""
        if self.weight.is_meta:
            return
        # Some rows at a time, so that a shard never needs a whole table. PyTorch's generator draws 16 values at once:
        # with multiples of 16 the result is that of a single draw.
        rows = 16 * max(1, (1 << 20) // (16 * self.dim))
        for start in range(0, self.n_slots, rows):
            count = min(rows, self.n_slots - start)
            values = self.weight.new_empty(count, self.dim).normal_(std=self.dim**-0.5)
            self.weight[start : start + count] = values[:, self.columns]

    def bag(self, slots: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of rows: slots (T, bag) int64 and weights (T, bag) → (T, V), differentiable in weights."""
        if self.sharded:
            return self._bag_of_shards(slots, weights)
        return self._collecting(ops.weighted_bag(self.weight, slots, weights, backend=self.backend), slots, weights)

    def lookup(self, queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The K best slots of every head, softmax over them, and the bag of all heads.

        Args:
            queries: (T, H, D).
            sub_keys: (H, 2, N, D/2) with N·N = n_slots.
            k: K.

        Returns:
            output (T, V), weights and slots (T, H, K); all but the slots differentiable in queries and sub_keys.
        """
        if self.sharded:
            scores, slots = ops.product_key_topk(queries, sub_keys, k, backend=self.backend)
            weights = torch.softmax(scores, dim=-1)
            return self.bag(slots.flatten(1), weights.flatten(1)), weights, slots
        output, weights, slots = ops.product_key_memory(queries, sub_keys, self.weight, k, backend=self.backend)
        return self._collecting(output, slots.flatten(1), weights.flatten(1)), weights, slots

    def take_pending(self) -> RowGradients:
        """The row gradients since the last call, as one triple (of no tokens if there were none).

        A triple whose gradient is zero throughout is left out, so that its rows and their moments do not change:
        fairseq gives a process that has no batch left another one, whose loss it multiplies by zero.
        """
        parts, self.pending = [part for part in self.pending if part.grad.any()], []
        if parts:
            return RowGradients.concatenated(parts)
        slots = torch.empty(0, 1, dtype=torch.int64, device=self.weight.device)
        return RowGradients(self.weight.new_empty(0, self.weight.size(1)), slots, self.weight.new_empty(0, 1))

    def own_columns(self, values: Tensor) -> Tensor:
        """This process's part (n_slots, V / shards) of a tensor (n_slots, V) that belongs to the table."""
        return values[:, self.columns]

    @torch.no_grad()
    def all_columns(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`own_columns`.

        Where sharded a collective call, and the result on the CPU of the first process; the others get (0, V).
        """
        if not self.sharded:
            return values
        exchange, keeps = Exchange(), dist.get_rank() == 0
        whole = torch.empty(self.n_slots if keeps else 0, self.dim, dtype=values.dtype)
        rows = max(1, (1 << 22) // self.dim)
        for start in range(0, self.n_slots, rows):
            parts = exchange.all_gather(values[start : start + rows])
            if keeps:
                whole[start : start + rows] = torch.cat(parts, dim=1).cpu()
        return whole

    def extra_repr(self) -> str:
        """Shape, and the share of this process."""
        return f"{self.n_slots:,} slots x {self.dim}" + (f", 1/{self.shards} of the columns" if self.sharded else "")

    # ---- collecting -----------------------------------------------------------------------------------------

    @property
    def _collects(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _collecting(self, output: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
        return self._collect(output, slots, weights) if self._collects else output

    # A backward pass that appends to a list cannot be part of a graph.
    @_outside_graphs
    def _collect(self, output: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
        return _Collect.apply(output, torch.empty(0, requires_grad=True), slots, weights, self)

    @_outside_graphs
    def _bag_of_shards(self, slots: Tensor, weights: Tensor) -> Tensor:
        return _ShardedBag.apply(weights, slots, torch.empty(0, requires_grad=self._collects), self)

    def _append(self, grad: Tensor, slots: Tensor, weights: Tensor) -> None:
        if self.training:
            self.pending.append(RowGradients(grad, slots, weights))

    # ---- saving ---------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self.sharded:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        # A table that several layers share is visited several times; it is gathered and stored once.
        whole = self._gathered() if self._gathered is not None else None
        if whole is None or not any(value is whole for value in destination.values()):
            whole = self.all_columns(self.weight.detach())
            self._gathered = weakref.ref(whole)
        destination[prefix + "weight"] = whole

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = prefix + "weight"
        value = state_dict.get(key)
        if self.sharded and isinstance(value, Tensor) and value.dim() == 2 and value.size(1) == self.dim:
            state_dict = {**state_dict, key: self.own_columns(value)}
        super()._load_from_state_dict(state_dict, prefix, *args)


def tables_of(model: nn.Module) -> list[ValueTable]:
    """The value tables of a model, each once."""
    return [module for module in model.modules() if isinstance(module, ValueTable)]


class _Collect(torch.autograd.Function):
    """The identity on the table's output (T, V), whose backward keeps the row gradients.

    ``anchor`` requires that backward even where the weights require none.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, slots: Tensor, weights: Tensor, table: ValueTable) -> Tensor:
        """(T, V) → (T, V)."""
        ctx.save_for_backward(slots, weights)
        ctx.table = table
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """(T, V) → (T, V)."""
        slots, weights = ctx.saved_tensors
        ctx.table._append(grad, slots, weights.detach())
        return grad, None, None, None, None


class _ShardedBag(torch.autograd.Function):
    """The bag of this process's tokens over columns that lie on all processes.

    Every process computes its columns for the tokens of all: slots and weights are gathered, and the sums return to
    the process that has the token. In backward, columns of grad are sent out, and partial gradients of the weights
    return and are added in the order of the processes; the row gradients of all tokens stay where the columns are.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, slots: Tensor, anchor: Tensor, table: ValueTable) -> Tensor:
        """weights and slots (T, bag) → (T, V)."""
        exchange = table.exchange if table.training else Exchange()  # only training steps are counted
        slots_of = exchange.all_gather(slots.to(torch.int32))  # (T_r, bag) for each process r
        weights_of = exchange.all_gather(weights)
        all_slots, all_weights = torch.cat(slots_of).to(torch.int64), torch.cat(weights_of)
        ctx.tokens = [len(part) for part in slots_of]
        ctx.table = table
        ctx.save_for_backward(all_slots, all_weights)
        sums = ops.weighted_bag(table.weight, all_slots, all_weights, backend=table.backend)  # (sum of T_r, V / shards)
        back = exchange.all_to_all(sums, ctx.tokens, [len(slots)] * table.shards)  # (shards · T, V / shards)
        return back.view(table.shards, len(slots), sums.size(1)).transpose(0, 1).reshape(len(slots), table.dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """(T, V) → (T, bag), the gradient of weights."""
        table: ValueTable = ctx.table
        slots, weights = ctx.saved_tensors
        own = [len(grad)] * table.shards
        columns = torch.cat(grad.chunk(table.shards, dim=1))  # (shards · T, V / shards): its columns to each process
        columns = table.exchange.all_to_all(columns, own, ctx.tokens)  # (sum of T_r, V / shards)
        for part in zip(*(rows.split(ctx.tokens) for rows in (columns, slots, weights)), strict=True):
            table._append(*part)  # a process's tokens
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        partial = ops.weighted_bag_weights_backward(
            columns, table.weight, slots, backend=table.backend
        )  # (sum of T_r, bag)
        partial = partial.to(torch.promote_types(partial.dtype, torch.float32))
        back = table.exchange.all_to_all(partial, ctx.tokens, own)
        return back.view(table.shards, len(grad), slots.size(1)).sum(dim=0).to(weights.dtype), None, None, None
