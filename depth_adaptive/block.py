"""A block of the decoder while it decodes: its weights' products, and the keys and values of the positions so far.

Axes: R rows (hypotheses), A of them alive, S source, B sentences, D dimension, t positions so far. What slots are
:mod:`depth_adaptive.decoding` says.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_adaptive import ops
from depth_adaptive.products import Products

if TYPE_CHECKING:
    from depth_adaptive.decoding import Search


def grown(storage: Tensor, slots: int) -> Tensor:
    """``storage`` (slots, ...), with its contents, for so many slots; what is new has any value."""
    larger = storage.new_empty(slots, *storage.shape[1:])
    larger[: storage.size(0)] = storage
    return larger


class Block:
    """The host's layer in evaluation mode, for one search, from the position at which a row first reaches it."""

    def __init__(self, layer: Any, products: Products, search: "Search") -> None:
        self.layer = layer
        self.encoder_out, self.places = search.encoder_out, search.places  # not the search, which has its blocks
        self.bind = partial(products.bind, search.encoder_out)
        own, source = layer.self_attn, layer.encoder_attn
        self.keys_values_queries = self.bind(own.k_proj, own.v_proj, own.q_proj)
        self.out = self.bind(own.out_proj)
        if source is not None:
            self.source_queries = self.bind(source.q_proj)
            self.source_out = self.bind(source.out_proj)
        self.relu = layer.activation_fn is F.relu
        self.fc1 = self.bind(layer.fc1, relu=self.relu)
        self.fc2 = self.bind(layer.fc2)
        assert search.history is not None
        self.keys_values = search.kept.new_empty(search.kept.size(0), 2 * own.embed_dim)  # of each slot
        self.filled = torch.zeros(search.kept.size(0), dtype=torch.bool, device=search.kept.device)  # which have them
        self.complete = search.history.size(1) == 1  # whether all earlier slots have

    def __call__(self, x: Tensor, search: "Search", slots: Tensor, alive: Tensor | None, sentences: Tensor) -> Tensor:
        """The output (A, D) for the input x (A, D) of the rows ``alive`` (A,), None: of all.

        ``slots`` and ``sentences`` (R,) are those of all rows.
        """
        layer = self.layer
        before = layer.normalize_before
        residual = x
        if before:
            x = layer.self_attn_layer_norm(x)
        x = self.attend_to_history(x, search, slots if alive is None else slots[alive], alive)
        if layer.c_attn is not None:
            x = (x.view(x.size(0), layer.nh, -1) * layer.c_attn[:, None]).flatten(1)
        if layer.attn_ln is not None:
            x = layer.attn_ln(x)
        x = residual + x
        if not before:
            x = layer.self_attn_layer_norm(x)
        if layer.encoder_attn is not None:
            residual = x
            if before:
                x = layer.encoder_attn_layer_norm(x)
            x = residual + self.attend_to_source(x, sentences if alive is None else sentences[alive])
            if not before:
                x = layer.encoder_attn_layer_norm(x)
        residual = x
        if before:
            x = layer.final_layer_norm(x)
        x = self.fc1(x)
        if not self.relu:
            x = layer.activation_fn(x)
        if layer.ffn_layernorm is not None:
            x = layer.ffn_layernorm(x)
        x = self.fc2(x)
        if layer.w_resid is not None:
            residual = layer.w_resid * residual
        x = residual + x
        return x if before else layer.final_layer_norm(x)

    def attend_to_history(self, x: Tensor, search: "Search", slots: Tensor, alive: Tensor | None) -> Tensor:
        """Self-attention of the normalised inputs x (A, D) over each row's history, itself included: (A, D)."""
        attention, history = self.layer.self_attn, search.history
        assert history is not None
        projected = self.keys_values_queries(x)  # (A, 3D)
        keys_values, queries = projected.split([2 * attention.embed_dim, attention.embed_dim], 1)
        self.keep(slots, keys_values)
        if (missing := self.missing(history, alive)) is not None:
            self.fill(missing, search.kept[missing])
        return self.out(ops.attend(queries, self.keys_values, history, alive, attention.num_heads))

    def attend_to_source(self, x: Tensor, sentences: Tensor) -> Tensor:
        """Attention of x (A, D) over the sources ``sentences`` (A,): (A, D)."""
        heads = self.layer.encoder_attn.num_heads
        return self.source_out(ops.attend(self.source_queries(x), self.source, self.places, sentences, heads))

    def keep(self, slots: Tensor, keys_values: Tensor) -> None:
        """Note the keys and values (A, 2D) of ``slots`` (A,)."""
        self.keys_values.index_copy_(0, slots, keys_values)
        self.filled.index_fill_(0, slots, True)

    def missing(self, history: Tensor, alive: Tensor | None) -> Tensor | None:
        """Slots in the histories (R, t) of the rows ``alive`` that have no keys and values; None: all have."""
        if self.complete:
            return None
        if alive is not None:
            history = history[alive]
        slots = history[~self.filled[history]]
        return slots.unique() if slots.numel() else None

    def fill(self, slots: Tensor, states: Tensor) -> None:
        """Keys and values of ``slots`` (A,) that have left below, from their copied states (A, D) (section 3)."""
        layer = self.layer
        self.keep(slots, self.copied(layer.self_attn_layer_norm(states) if layer.normalize_before else states))

    def grow(self, slots: int) -> None:
        """Make room for so many."""
        self.keys_values = grown(self.keys_values, slots)
        self.filled = F.pad(self.filled, (0, slots - self.filled.size(0)))

    @cached_property
    def copied(self) -> Callable[[Tensor], Tensor]:
        """The function from copied states (A, D) to keys and values (A, 2D)."""
        return self.bind(self.layer.self_attn.k_proj, self.layer.self_attn.v_proj)

    @cached_property
    def source(self) -> Tensor:
        """Keys and values of the source (S * B, 2D), which all rows of a sentence share."""
        attention = self.layer.encoder_attn
        return self.bind(attention.k_proj, attention.v_proj)(self.encoder_out).flatten(0, 1)
