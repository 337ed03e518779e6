"""Memory layers: a query network, keys, and a table of values of which each token reads a few rows.

Lample et al., *Large Memory Layers with Product Keys*, NeurIPS 2019 (arXiv 1907.05242); shared tables, query-key
normalisation and gating from Berges et al., *Memory Layers at Scale*, 2024 (arXiv 2412.09764).

Axes: T tokens, C input and O output dimension, H heads, N sub-keys per half, K selected slots, D key dimension, V value
dimension.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_layers import reference
from memory_layers.table import ValueTable
from memory_layers.usage import SlotUsage
from thoth_core.batch_norm import BatchNorm

QUERY_NORMS = ("batch", "layer", "none")


class TokenBatchNorm(BatchNorm):
    """Batch norm over tokens (T, features) that also takes fewer than two of them, by its running statistics.

    It computes in float32 (float64 in float64).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(T, features) → (T, features)."""
        x, weight, bias = (value.to(self.running_mean.dtype) for value in (input, self.weight, self.bias))
        own = self.training and len(input) >= 2  # the batch's statistics
        # --checkpoint-activations repeats a pass of training without gradients: the running statistics take one step
        # for both.
        frozen = own and not torch.is_grad_enabled()
        mean, var = (None, None) if frozen else (self.running_mean, self.running_var)
        y = F.batch_norm(x, mean, var, weight, bias, own, self.momentum, self.eps)
        return y.to(input.dtype)


def query_network(*, input_dim: int, hidden_dims: Sequence[int], output_dim: int, norm: str) -> nn.Sequential:
    """Linear layers with ReLU between them and a normalisation at the end (paper, section 3.1): (T, C) → (T, output).

    Args:
        hidden_dims: widths of the hidden layers; none is a single linear layer, as in the paper's experiments.
        norm: ``batch`` (the paper's), ``layer`` (over all heads' queries together) or ``none``.
    """
    widths = [input_dim, *hidden_dims, output_dim]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [_linear(before, after, bias=True), nn.ReLU()]
    layers.append(_linear(widths[-2], output_dim, bias=norm != "batch"))  # batch norm would remove a bias
    if norm == "batch":
        layers.append(TokenBatchNorm(output_dim))
    elif norm == "layer":
        layers.append(nn.LayerNorm(output_dim))
    return nn.Sequential(*layers)


def _linear(input_dim: int, output_dim: int, *, bias: bool) -> nn.Linear:
    linear = nn.Linear(input_dim, output_dim, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class Memory(nn.Module, ABC):
    """The base of :class:`ProductKeyMemory` and :class:`FlatKeyMemory`: everything but the keys.

    The output is W₂ (y ⊙ silu(W₁ x)) if ``gated``, else y, through a linear projection if V differs from O, where y
    is the sum over heads and selected slots of weight · value.

    Args:
        n_slots: rows of the table.
        input_dim: C.
        output_dim: O; C if None.
        heads: H.
        k: slots read by each head.
        key_dim: D.
        value_dim: V; if None that of ``table``, else O.
        query_hidden_dims: widths of the query network's hidden layers.
        query_norm: ``batch``, ``layer`` or ``none``, at the end of the query network.
        input_dropout: on the input.
        query_dropout: on the queries.
        value_dropout: on the sum of the values that are read, (T, V).
        shared_keys: one set of keys for all heads; else each head has its own.
        qk_norm: scores are cosines (of the halves, for product keys) times a learned factor for each head, which
            starts at the root of the vectors' size.
        gated: see above.
        table: a table that other layers share; a new one if None.
        backend: implementation of the operators (:mod:`memory_layers.ops`); if None that of ``table``, else ``auto``.

    Raises:
        ValueError: sizes below 1, k above the number of keys to choose from, dropout outside [0, 1), a table of another
            size or backend; before anything is allocated.
        RuntimeError: the backend's kernels are not built.
    """

    def __init__(
        self,
        *,
        n_slots: int,
        input_dim: int,
        output_dim: int | None = None,
        heads: int = 4,
        k: int = 32,
        key_dim: int = 256,
        value_dim: int | None = None,
        query_hidden_dims: Sequence[int] = (),
        query_norm: str = "batch",
        input_dropout: float = 0.0,
        query_dropout: float = 0.0,
        value_dropout: float = 0.0,
        shared_keys: bool = False,
        qk_norm: bool = False,
        gated: bool = False,
        table: ValueTable | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        output_dim = input_dim if output_dim is None else output_dim
        if value_dim is None:
            value_dim = output_dim if table is None else table.dim
        sizes = dict(input_dim=input_dim, output_dim=output_dim, heads=heads, key_dim=key_dim, value_dim=value_dim)
        for name, size in (*sizes.items(), *(("query_hidden_dims", width) for width in query_hidden_dims)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, given {size}")
        for name, p in dict(input=input_dropout, query=query_dropout, value=value_dropout).items():
            if not 0 <= p < 1:
                raise ValueError(f"{name}_dropout must lie in [0, 1), given {p}")
        if query_norm not in QUERY_NORMS:
            raise ValueError(f"query_norm must be one of {', '.join(QUERY_NORMS)}, given {query_norm!r}")
        if table is not None and (table.n_slots, table.dim) != (n_slots, value_dim):
            raise ValueError(
                f"the table must have {n_slots} slots of dimension {value_dim}, given {table.n_slots} of {table.dim}"
            )
        if table is not None and backend not in (None, table.backend):
            raise ValueError(f"the backend must be that of the table, {table.backend!r}, given {backend!r}")
        self.input_dim, self.output_dim, self.value_dim, self.n_slots = input_dim, output_dim, value_dim, n_slots
        self.heads, self.k, self.key_dim = heads, k, key_dim
        self.shared_keys = shared_keys
        self.input_dropout, self.query_dropout, self.value_dropout = input_dropout, query_dropout, value_dropout
        self.retain_dropout = False  # whether evaluation drops out too
        self.query = query_network(
            input_dim=input_dim, hidden_dims=query_hidden_dims, output_dim=heads * key_dim, norm=query_norm
        )
        self.qk_scale = nn.Parameter(torch.full((heads,), math.sqrt(self._key_size()))) if qk_norm else None
        self.gate = _linear(input_dim, value_dim, bias=False) if gated else None
        self.project = _linear(value_dim, output_dim, bias=False) if gated or value_dim != output_dim else None
        self.table = ValueTable(n_slots, value_dim, backend=backend or "auto") if table is None else table

    @abstractmethod
    def _key_size(self) -> int:
        """The dimension of the vectors that are scored."""

    @abstractmethod
    def _read(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """queries (T, H, D) → sums of the values (T, V), weights (T, H, K) and slots (T, H, K)."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None, *, usage: SlotUsage | None = None) -> Tensor:
        """Look every token up.

        Args:
            x: (..., C).
            padding_mask: (...) bool, True at padding: those tokens get zeros, read nothing, and count neither in
                batch norm nor in the usage.
            usage: where the slots that are read are recorded, in evaluation mode only; see :meth:`new_usage`.

        Returns:
            (..., O)

        Raises:
            ValueError: another dimension than C, or a mask of another shape.
        """
        if x.size(-1) != self.input_dim:
            raise ValueError(f"the input's last dimension must be {self.input_dim}, given {tuple(x.shape)}")
        if padding_mask is None:
            return self._tokens(x.reshape(-1, self.input_dim), usage).view(*x.shape[:-1], self.output_dim)
        if padding_mask.shape != x.shape[:-1] or padding_mask.dtype != torch.bool:
            raise ValueError(
                f"padding_mask must be bool of shape {tuple(x.shape[:-1])}, given {padding_mask.dtype} "
                f"{tuple(padding_mask.shape)}"
            )
        real = ~padding_mask
        y = self._tokens(x[real], usage)
        return y.new_zeros(*x.shape[:-1], self.output_dim).masked_scatter(real.unsqueeze(-1), y)

    def _tokens(self, x: Tensor, usage: SlotUsage | None) -> Tensor:
        """(T, C) → (T, O)."""
        drops = self.training or self.retain_dropout
        x = F.dropout(x, self.input_dropout, drops)
        queries = F.dropout(self.query(x), self.query_dropout, drops)
        y, weights, slots = self._read(queries.view(-1, self.heads, self.key_dim))
        if usage is not None and not self.training:
            usage.add(slots, weights)
        y = F.dropout(y.to(x.dtype), self.value_dropout, drops)
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        return y if self.project is None else self.project(y)

    def make_generation_fast_(self, retain_dropout: bool = False, retain_dropout_modules: Any = None, **_: Any) -> None:
        """Prepare for decoding (fairseq calls this): ``--retain-dropout``, of all modules or of those named."""
        named = retain_dropout_modules is None or type(self).__name__ in retain_dropout_modules
        self.retain_dropout = retain_dropout and named

    def new_usage(self) -> SlotUsage:
        """An empty record of this memory's size, for :meth:`forward`."""
        return SlotUsage(n_slots=self.n_slots, heads=self.heads, device=self.table.weight.device)

    def _new_keys(self, *shape: int) -> nn.Parameter:
        """Uniform between ±1/√size of the vectors, as the paper's sub-keys."""
        bound = self._key_size() ** -0.5
        return nn.Parameter(torch.empty(1 if self.shared_keys else self.heads, *shape).uniform_(-bound, bound))

    def _normalised(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are scored: those of every head, normalised with ``qk_norm``.

        Args:
            queries: (T, H, ..., size).
            keys: (H or 1, ..., size).
        """
        keys = keys.expand(self.heads, *keys.shape[1:])
        if self.qk_scale is None:
            return queries, keys
        scale = self.qk_scale.view(-1, *[1] * (queries.dim() - 2))
        return F.normalize(queries, dim=-1) * scale, F.normalize(keys, dim=-1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"heads={self.heads}, k={self.k}, key_dim={self.key_dim}, shared_keys={self.shared_keys}"


class ProductKeyMemory(Memory):
    """A memory of N·N slots, whose keys are all pairs of N + N sub-keys of half the dimension (paper, section 3.2).

    The search for the K best slots is exact. Softmax over each head's K scores gives the weights; heads are summed.

    Args:
        n_keys: N.
        key_dim: D, even.
        k: K, at most N.
        options: see :class:`Memory`.
    """

    def __init__(self, *, input_dim: int, n_keys: int = 512, key_dim: int = 256, k: int = 32, **options: Any) -> None:
        if key_dim % 2:
            raise ValueError(f"key_dim must be even, since queries are split in two halves, given {key_dim}")
        if not 1 <= k <= n_keys:
            raise ValueError(f"k must lie between 1 and n_keys = {n_keys}, given {k}")
        super().__init__(n_slots=n_keys * n_keys, input_dim=input_dim, key_dim=key_dim, k=k, **options)
        self.n_keys = n_keys
        self.sub_keys = self._new_keys(2, n_keys, key_dim // 2)

    def _key_size(self) -> int:
        return self.key_dim // 2

    def _read(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        halves, sub_keys = self._normalised(queries.unflatten(-1, (2, self._key_size())), self.sub_keys)
        return self.table.lookup(halves.flatten(2), sub_keys, self.k)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"n_keys={self.n_keys}, {super().extra_repr()}"


class FlatKeyMemory(Memory):
    """A memory with a key of its own for every slot, all of which are compared with every query.

    The baseline of the paper (section 4.5, "product keys and flat keys").

    Args:
        n_slots: number of slots and of keys per head.
        k: K, at most n_slots.
        options: see :class:`Memory`.
    """

    def __init__(self, *, input_dim: int, n_slots: int, k: int = 32, **options: Any) -> None:
        if not 1 <= k <= n_slots:
            raise ValueError(f"k must lie between 1 and n_slots = {n_slots}, given {k}")
        super().__init__(n_slots=n_slots, input_dim=input_dim, k=k, **options)
        self.keys = self._new_keys(n_slots, self.key_dim)

    def _key_size(self) -> int:
        return self.key_dim

    def _read(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, slots = reference.flat_key_topk(*self._normalised(queries, self.keys), self.k)
        weights = scores.softmax(dim=-1)
        return self.table.bag(slots.flatten(1), weights.flatten(1)), weights, slots

    def extra_repr(self) -> str:
        """The sizes."""
        return f"n_slots={self.n_slots}, {super().extra_repr()}"
