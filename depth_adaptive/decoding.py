"""One step of decoding in which every row stops at its own block, and blocks compute only the rows still alive.

Axes: R rows (hypotheses of all sentences), A rows that are alive, S source, t positions decoded so far, D dimension,
H heads. A *slot* is one decoded position of one row; its keys, values and state are stored once, and the hypotheses
that beam search makes of a row share them: they hold the numbers of their slots, (R, t), and only these are reordered.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_adaptive.halting import Policy


class Slots:
    """Storage that grows, of ``parts`` tensors (slots, width)."""

    def __init__(self, like: Tensor, *, width: int, parts: int) -> None:
        self.parts = [like.new_empty(0, width) for _ in range(parts)]

    def __getitem__(self, part: int) -> Tensor:
        return self.parts[part]

    def reserve(self, slots: int) -> None:
        """Make room for so many slots."""
        for i, old in enumerate(self.parts):
            if old.size(0) < slots:
                self.parts[i] = old.new_empty(max(slots, 2 * old.size(0)), old.size(1))
                self.parts[i][: old.size(0)] = old


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
        self.encoder_out, self.padding = encoder_out, padding
        self.eager = eager
        self.sentence = mean_state(encoder_out, padding)  # (B, E)
        like = encoder_out.new_empty(0)
        self.kept = Slots(like, width=decoder.embed_dim, parts=1)  # the state a slot has left with
        self.keys_values = [Slots(like, width=2 * decoder.embed_dim, parts=1) for _ in layers]
        self.filled = [torch.zeros(0, dtype=torch.bool, device=like.device) for _ in layers]
        self.history: Tensor | None = None  # (R, t) slots of each row
        self.exits: Tensor | None = None  # (R, t) exits of each row
        self.used = 0  # slots
        self.source: list[tuple[Tensor, Tensor] | None] = [None for _ in layers]  # keys and values (B, H, S, D / H)
        self.present = torch.arange(encoder_out.size(1), device=like.device)  # sentences in `source`

    def begin_step(self, rows: int) -> Tensor:
        """Room for the next position of all rows; their slots (R,)."""
        device = self.encoder_out.device
        new = torch.arange(self.used, self.used + rows, device=device)
        self.used += rows
        self.kept.reserve(self.used)
        for n, storage in enumerate(self.keys_values):
            storage.reserve(self.used)
            more = storage[0].size(0) - self.filled[n].numel()
            if more:
                self.filled[n] = F.pad(self.filled[n], (0, more))
        self.history = new[:, None] if self.history is None else torch.cat([self.history, new[:, None]], 1)
        return new

    def reorder(self, order: Tensor) -> None:
        """Row i goes on with the history of row order[i]."""
        if self.history is not None and self.exits is not None:
            self.history = self.history[order]
            self.exits = self.exits[order]


def mean_state(encoder_out: Tensor, padding: Tensor | None) -> Tensor:
    """The mean of the encoder's output (S, B, E) over real positions: (B, E)."""
    if padding is None:
        return encoder_out.mean(0)
    real = (~padding).t().unsqueeze(-1).to(encoder_out)  # (S, B, 1)
    return (encoder_out * real).sum(0) / real.sum(0)


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
    groups = _groups(search, sentences)
    exits = torch.full_like(tokens, total)
    positions = torch.full_like(tokens, search.history.size(1) - 1)
    alive: Tensor | None = None  # None: every row
    planned: Tensor | None = None
    logits: Tensor | None = None
    for n in range(1, total + 1):
        x_alive = _block(decoder, search, n - 1, x if alive is None else x[alive], slots, alive, groups)
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
        search.kept[0][slots[rows]] = x[rows]
        if search.eager:
            for upper in range(n, total):
                _fill(decoder, search, upper, slots[rows])
        staying = (~stops).nonzero().squeeze(1)
        alive = staying if alive is None else alive[staying]
        if not alive.numel():
            break
    if logits is None:
        logits = decoder.logits_by_exit(x, exits)
    elif alive is not None and alive.numel():
        logits[alive] = decoder.exit_logits(total, x[alive])
    search.exits = exits[:, None] if search.exits is None else torch.cat([search.exits, exits[:, None]], 1)
    return logits, exits


def _groups(search: Search, sentences: Tensor) -> tuple[int, Tensor | None]:
    """Keeps `search.source` to the sentences that are left; (rows a sentence, None) or, irregular, (0, its index)."""
    present = torch.unique_consecutive(sentences)
    rows = sentences.numel() // present.numel()
    regular = sentences.numel() == rows * present.numel() and torch.equal(
        sentences.view(present.numel(), rows), present[:, None].expand(-1, rows)
    ) and bool((present.diff() > 0).all())  # fmt: skip
    if not regular:
        return 0, torch.searchsorted(search.present, sentences)
    if present.numel() != search.present.numel():
        kept = torch.searchsorted(search.present, present)
        search.source = [None if pair is None else (pair[0][kept], pair[1][kept]) for pair in search.source]
        search.encoder_out = search.encoder_out[:, kept]
        if search.padding is not None:
            search.padding = search.padding[kept]
        search.present = present
    return rows, None


def _block(
    decoder: Any,
    search: Search,
    n: int,
    x: Tensor,
    slots: Tensor,
    alive: Tensor | None,
    groups: tuple[int, Tensor | None],
) -> Tensor:
    """Block n (from 0) of the rows ``alive``, whose input is x (A, D): the host's layer in evaluation mode."""
    layer = decoder.layers[n]
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
        x = residual + _attend_to_source(search, n, layer.encoder_attn, x, alive, slots.size(0), groups)
        if not before:
            x = layer.encoder_attn_layer_norm(x)
    residual = x
    if before:
        x = layer.final_layer_norm(x)
    x = layer.activation_fn(layer.fc1(x))
    if layer.ffn_layernorm is not None:
        x = layer.ffn_layernorm(x)
    x = layer.fc2(x)
    if layer.w_resid is not None:
        residual = layer.w_resid * residual
    x = residual + x
    return x if before else layer.final_layer_norm(x)


def _attend_to_history(decoder: Any, search: Search, n: int, x: Tensor, slots: Tensor, alive: Tensor | None) -> Tensor:
    """Self-attention of the normalised inputs x (A, D) over each row's history, itself included: (A, D)."""
    attention = decoder.layers[n].self_attn
    own = slots if alive is None else slots[alive]
    storage = search.keys_values[n][0]
    d = attention.embed_dim
    storage[own, :d] = attention.k_proj(x)
    storage[own, d:] = attention.v_proj(x)
    search.filled[n][own] = True
    assert search.history is not None
    history = search.history if alive is None else search.history[alive]  # (A, t)
    if not search.eager and n > 0:
        missing = history[~search.filled[n][history]]
        if missing.numel():
            _fill(decoder, search, n, missing.unique())
    a, t = history.shape
    gathered = storage.index_select(0, history.flatten()).view(a, t, 2, attention.num_heads, -1)
    keys, values = gathered.permute(2, 0, 3, 1, 4)  # (A, H, t, D / H) each
    queries = attention.q_proj(x).view(a, attention.num_heads, 1, -1)
    read = F.scaled_dot_product_attention(queries, keys, values)  # (A, H, 1, D / H)
    return attention.out_proj(read.flatten(1))


def _fill(decoder: Any, search: Search, n: int, slots: Tensor) -> None:
    """Keys and values in block n of slots that have left below it, from their copied states (section 3)."""
    layer = decoder.layers[n]
    x = search.kept[0][slots]
    if layer.normalize_before:
        x = layer.self_attn_layer_norm(x)
    d = layer.self_attn.embed_dim
    search.keys_values[n][0][slots, :d] = layer.self_attn.k_proj(x)
    search.keys_values[n][0][slots, d:] = layer.self_attn.v_proj(x)
    search.filled[n][slots] = True


def _attend_to_source(
    search: Search,
    n: int,
    attention: Any,
    x: Tensor,
    alive: Tensor | None,
    rows: int,
    groups: tuple[int, Tensor | None],
) -> Tensor:
    """Attention of x (A, D) over each row's source: (A, D). All rows of a sentence share its keys and values."""
    heads = attention.num_heads
    if (pair := search.source[n]) is None:
        s, b, _ = search.encoder_out.shape
        pair = search.source[n] = (
            attention.k_proj(search.encoder_out).view(s, b, heads, -1).permute(1, 2, 0, 3).contiguous(),
            attention.v_proj(search.encoder_out).view(s, b, heads, -1).permute(1, 2, 0, 3).contiguous(),
        )
    keys, values = pair
    mask = None if search.padding is None else ~search.padding[:, None, None]  # (B, 1, 1, S)
    queries = attention.q_proj(x)  # (A, D)
    beam, index = groups
    if index is not None:
        index = index if alive is None else index[alive]
        mask = None if mask is None else mask[index]
        queries = queries.view(queries.size(0), heads, 1, -1)
        read = F.scaled_dot_product_attention(queries, keys[index], values[index], attn_mask=mask).flatten(1)
    else:
        if alive is not None:  # the others' places stay empty: the arithmetic is small beside a copy of keys and values
            queries = x.new_zeros(rows, queries.size(1)).index_copy_(0, alive, queries)
        queries = queries.view(-1, beam, heads, queries.size(1) // heads).transpose(1, 2)  # (B, H, beam, D / H)
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        read = read.transpose(1, 2).reshape(rows, -1)
        read = read if alive is None else read[alive]
    return attention.out_proj(read)
