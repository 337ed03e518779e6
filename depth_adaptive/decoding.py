"""One step of decoding in which every row stops at its own block, and blocks compute only the rows still alive.

Axes: R rows (hypotheses of all sentences), A rows that are alive, S source, t positions decoded so far, D dimension,
H heads. A *slot* is one decoded position of one row; its keys, values and state are stored once, and the hypotheses
that beam search makes of a row share them: they hold the numbers of their slots, (R, t), and only these are reordered.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_adaptive import ops
from depth_adaptive.halting import Policy

POSITIONS = 16  # that there is room for at first
# With so few rows a block takes the time of reading its weights, however many rows there are: all of them go on until
# the last has left, and what a block makes of the others is not taken. Their keys and values are copied states'.
FEW_ROWS = 8


def grown(storage: Tensor, slots: int) -> Tensor:
    """``storage`` (slots, ...), with its contents, for so many slots; what is new has any value."""
    larger = storage.new_empty(slots, *storage.shape[1:])
    larger[: storage.size(0)] = storage
    return larger


class Search:
    """What is remembered from one step to the next, for one batch of sentences.

    Args:
        encoder_out: (S, B, E), the encoder's output of the B sentences.
        padding: (B, S) True at padding, or None.
        eager: compute the keys and values of copied states at once, in every upper block; else when a row first
            needs them.
    """

    def __init__(self, decoder: Any, encoder_out: Tensor, padding: Tensor | None, *, eager: bool) -> None:
        layers = list(decoder.layers)
        self.encoder_out = encoder_out
        self.eager = eager
        self.sentence = mean_state(encoder_out, padding)  # (B, E)
        like = encoder_out.new_empty(0)
        self.kept = like.new_empty(0, decoder.embed_dim)  # the state a slot has left with
        self.keys_values = [like.new_empty(0, 2 * decoder.embed_dim) for _ in layers]
        self.filled = torch.zeros(len(layers), 0, dtype=torch.bool, device=like.device)  # whether a slot has them
        self.history: Tensor | None = None  # (R, t) slots of each row
        self.exits: Tensor | None = None  # (R, t) exits of each row
        self.used = 0  # slots
        self.complete = [True for _ in layers]  # whether all slots have keys and values
        length, count, _ = encoder_out.shape
        # Rows of `source` that hold a sentence's keys and values; below 0 at padding: (B, S)
        self.places = torch.arange(length * count, device=like.device).view(length, count).t().contiguous()
        if padding is not None:
            self.places.masked_fill_(padding, -1)
        self.source: list[Tensor | None] = [None for _ in layers]  # (S * B, 2D) of each block

    def begin_step(self, rows: int) -> Tensor:
        """Room for the next position of all rows; their slots (R,)."""
        device = self.encoder_out.device
        new = torch.arange(self.used, self.used + rows, device=device)
        self.used += rows
        room = self.kept.size(0)
        if self.used > room:
            more = max(POSITIONS * rows, 2 * room, self.used)
            self.kept = grown(self.kept, more)
            self.keys_values = [grown(storage, more) for storage in self.keys_values]
            self.filled = F.pad(self.filled, (0, more - room))
        self.history = new[:, None] if self.history is None else torch.cat([self.history, new[:, None]], 1)
        return new

    def keep(self, n: int, slots: Tensor, keys_values: Tensor) -> None:
        """Keys and values (A, 2D) in block n (from 0) of ``slots`` (A,)."""
        self.keys_values[n].index_copy_(0, slots, keys_values)
        self.filled[n].index_fill_(0, slots, True)

    def missing(self, n: int, alive: Tensor | None) -> Tensor | None:
        """Slots in the histories of the rows ``alive`` that have no keys and values in block n; None: all have."""
        if self.complete[n]:
            return None
        assert self.history is not None
        history = self.history if alive is None else self.history[alive]
        slots = history[~self.filled[n][history]]
        return slots.unique() if slots.numel() else None

    def reorder(self, order: Tensor) -> None:
        """Row i goes on with the history of row order[i]."""
        if self.history is not None and self.exits is not None:
            self.history = self.history[order]
            self.exits = self.exits[order]


def mean_state(encoder_out: Tensor, padding: Tensor | None) -> Tensor:
    """The mean of the encoder's output (S, B, E) over real positions: (B, E).

    In float32 or better, as bfloat16 cannot count to 257: a sentence's mean must not hang on the padding beside it.
    """
    x = encoder_out.to(torch.promote_types(encoder_out.dtype, torch.float32))
    if padding is None:
        padding = torch.zeros(x.size(1), x.size(0), dtype=torch.bool, device=x.device)
    total = x.masked_fill(padding.t().unsqueeze(-1), 0).sum(0)
    return (total / (~padding).sum(1, keepdim=True)).to(encoder_out.dtype)


def step(
    decoder: Any, search: Search, policy: Policy, x: Tensor, tokens: Tensor, sentences: Tensor
) -> tuple[Tensor, Tensor]:
    """Decode one position of every row.

    Args:
        x: (R, D), the embedded input tokens.
        tokens: (R,) int64, these tokens.
        sentences: (R,) int64, each row's sentence, of the B that the search began with.

    Returns:
        The output layer's logits (R, V) and the exits (R,) int64.
    """
    total = len(decoder.layers)
    slots = search.begin_step(x.size(0))
    assert search.history is not None
    exits = torch.full_like(tokens, total)
    positions = torch.full_like(tokens, search.history.size(1) - 1)
    alive: Tensor | None = None  # None: every row
    planned: Tensor | None = None
    logits: Tensor | None = None
    few = x.size(0) <= FEW_ROWS and not search.eager
    for n in range(1, total + 1):
        computed = None if few else alive
        x_alive = _block(decoder, search, n - 1, x if computed is None else x[computed], slots, computed, sentences)
        if alive is not None and few:
            x_alive = x_alive[alive]
        x = x_alive if alive is None else x.index_copy(0, alive, x_alive)
        if n == total:
            break
        if n == 1:
            planned = policy.planned(search.sentence[sentences], x, tokens, positions)
        found: Tensor | None = None
        if planned is not None:
            stops = (planned if alive is None else planned[alive]) == n
        else:

            def output(n: int = n, x_alive: Tensor = x_alive) -> Tensor:
                nonlocal found
                found = decoder.exit_logits(n, x_alive)
                return found

            stops = policy.stops(n, x_alive, output)
        leaving = stops.nonzero().squeeze(1)  # of the alive
        if not leaving.numel():
            continue
        rows = leaving if alive is None else alive[leaving]
        exits[rows] = n
        if found is not None:
            logits = found.new_empty(x.size(0), found.size(1)) if logits is None else logits
            logits[rows] = found[leaving]
        search.kept[slots[rows]] = x[rows]
        if search.eager:
            for upper in range(n, total):
                _fill(decoder, search, upper, slots[rows])
        staying = (~stops).nonzero().squeeze(1)
        alive = staying if alive is None else alive[staying]
        if not alive.numel():
            break
    if not search.eager:
        for upper in range(n if few else int(exits.min()), total):
            search.complete[upper] = False
    if logits is None:
        logits = decoder.logits_by_exit(x, exits)
    elif alive is not None and alive.numel():
        logits[alive] = decoder.exit_logits(total, x[alive])
    search.exits = exits[:, None] if search.exits is None else torch.cat([search.exits, exits[:, None]], 1)
    return logits, exits


def _block(
    decoder: Any, search: Search, n: int, x: Tensor, slots: Tensor, alive: Tensor | None, sentences: Tensor
) -> Tensor:
    """Block n (from 0) of the rows ``alive``, whose input is x (A, D): the host's layer in evaluation mode."""
    layer, products = decoder.layers[n], decoder.products
    before = layer.normalize_before
    residual = x
    if before:
        x = layer.self_attn_layer_norm(x)
    x = _attend_to_history(decoder, search, n, x, slots, alive)
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
        x = residual + _attend_to_source(decoder, search, n, x, sentences if alive is None else sentences[alive])
        if not before:
            x = layer.encoder_attn_layer_norm(x)
    residual = x
    if before:
        x = layer.final_layer_norm(x)
    relu = layer.activation_fn is F.relu
    x = products(x, layer.fc1, relu=relu)
    if not relu:
        x = layer.activation_fn(x)
    if layer.ffn_layernorm is not None:
        x = layer.ffn_layernorm(x)
    x = products(x, layer.fc2)
    if layer.w_resid is not None:
        residual = layer.w_resid * residual
    x = residual + x
    return x if before else layer.final_layer_norm(x)


def _attend_to_history(decoder: Any, search: Search, n: int, x: Tensor, slots: Tensor, alive: Tensor | None) -> Tensor:
    """Self-attention of the normalised inputs x (A, D) over each row's history, itself included: (A, D)."""
    attention = decoder.layers[n].self_attn
    d = attention.embed_dim
    projected = decoder.products(x, attention.k_proj, attention.v_proj, attention.q_proj)  # (A, 3D)
    search.keep(n, slots if alive is None else slots[alive], projected[:, : 2 * d])
    assert search.history is not None
    if (missing := search.missing(n, alive)) is not None:
        _fill(decoder, search, n, missing)
    read = ops.attend(projected[:, 2 * d :], search.keys_values[n], search.history, alive, attention.num_heads)
    return decoder.products(read, attention.out_proj)


def _fill(decoder: Any, search: Search, n: int, slots: Tensor) -> None:
    """Keys and values in block n of slots that have left below it, from their copied states (section 3)."""
    attention = decoder.layers[n].self_attn
    copied = _copied(decoder, search, n, slots)
    search.keep(n, slots, decoder.products(copied, attention.k_proj, attention.v_proj))


def _copied(decoder: Any, search: Search, n: int, slots: Tensor) -> Tensor:
    """What block n's keys and values are made from, of slots that have left below it: (A, D)."""
    layer, x = decoder.layers[n], search.kept[slots]
    return layer.self_attn_layer_norm(x) if layer.normalize_before else x


def _attend_to_source(decoder: Any, search: Search, n: int, x: Tensor, sentences: Tensor) -> Tensor:
    """Attention of x (A, D) over the sources ``sentences`` (A,): (A, D). Rows of a sentence share keys and values."""
    attention, products = decoder.layers[n].encoder_attn, decoder.products
    if (source := search.source[n]) is None:
        source = search.source[n] = products(search.encoder_out, attention.k_proj, attention.v_proj).flatten(0, 1)
    queries = products(x, attention.q_proj)
    return products(ops.attend(queries, source, search.places, sentences, attention.num_heads), attention.out_proj)
