"""One step of decoding in which every row stops at its own block, and blocks compute only the rows still alive.

Axes: R rows (hypotheses of all sentences), A rows that are alive, S source, t positions decoded so far, D dimension.
A *slot* is one decoded position of one row; its keys, values and state are stored once, and the hypotheses
that beam search makes of a row share them: they hold the numbers of their slots, (R, t), and only these are reordered.
"""

from typing import Any

import torch
from torch import Tensor

from depth_adaptive.block import Block, grown
from depth_adaptive.halting import Policy

POSITIONS = 16  # that there is room for at first
# With so few rows a block takes the time of reading its weights, however many rows there are: all of them go on until
# the last has left, and what a block makes of the others is not taken. Their keys and values are copied states'.
FEW_ROWS = 8


class Search:
    """What is remembered from one step to the next, for one batch of sentences.

    Args:
        encoder_out: (S, B, E), the encoder's output of the B sentences.
        padding: (B, S) True at padding, or None.
        eager: compute the keys and values of copied states at once, in every upper block; else when a row first
            needs them.
    """

    def __init__(self, decoder: Any, encoder_out: Tensor, padding: Tensor | None, *, eager: bool) -> None:
        self.decoder = decoder
        self.encoder_out = encoder_out
        self.eager = eager
        self.sentence = mean_state(encoder_out, padding)  # (B, E)
        self.kept = encoder_out.new_empty(0, decoder.embed_dim)  # the state a slot has left with
        self.blocks: list[Block | None] = [None] * len(decoder.layers)  # those that some row has reached
        self.history: Tensor | None = None  # (R, t) slots of each row
        self.exits: Tensor | None = None  # (R, t) exits of each row
        self.used = 0  # slots
        length, count, _ = encoder_out.shape
        # Rows of a block's `source` that hold a sentence's keys and values; below 0 at padding: (B, S)
        self.places = torch.arange(length * count, device=encoder_out.device).view(length, count).t().contiguous()
        if padding is not None:
            self.places.masked_fill_(padding, -1)

    def block(self, n: int) -> Block:
        """Block n, from 1; it holds nothing before the first call."""
        found = self.blocks[n - 1]
        if found is None:
            found = self.blocks[n - 1] = Block(self.decoder.layers[n - 1], self.decoder.products, self)
        return found

    def begin_step(self, rows: int) -> Tensor:
        """Room for the next position of all rows; their slots (R,)."""
        new = torch.arange(self.used, self.used + rows, device=self.encoder_out.device)
        self.used += rows
        if self.used > (room := self.kept.size(0)):
            room = max(POSITIONS * rows, 2 * room, self.used)
            self.kept = grown(self.kept, room)
            for block in self.blocks:
                if block is not None:
                    block.grow(room)
        self.history = new[:, None] if self.history is None else torch.cat([self.history, new[:, None]], 1)
        return new

    def end_step(self, x: Tensor, exits: Tensor, computed: int) -> None:
        """Note the exits (R,) of the rows at this position, and the states x (R, D) that they have left with.

        All rows are known to the first ``computed`` blocks.
        """
        self.kept[self.used - x.size(0) : self.used] = x
        for block in self.blocks[computed:]:
            if block is not None:
                block.complete = False
        self.exits = exits[:, None] if self.exits is None else torch.cat([self.exits, exits[:, None]], 1)

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


def step(search: Search, policy: Policy, x: Tensor, tokens: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
    """Decode one position of every row.

    Args:
        x: (R, D), the embedded input tokens.
        tokens: (R,) int64, these tokens.
        sentences: (R,) int64, each row's sentence, of the B that the search began with.

    Returns:
        The output layer's logits (R, V) and the exits (R,) int64.
    """
    decoder, total = search.decoder, len(search.blocks)
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
        x_alive = search.block(n)(x if computed is None else x[computed], search, slots, computed, sentences)
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
        if search.eager:
            for upper in range(n + 1, total + 1):
                search.block(upper).fill(slots[rows], x[rows])
        staying = (~stops).nonzero().squeeze(1)
        alive = staying if alive is None else alive[staying]
        if not alive.numel():
            break
    if logits is None:
        logits = decoder.logits_by_exit(x, exits)
    elif alive is not None and alive.numel():
        logits[alive] = decoder.exit_logits(total, x[alive])
    search.end_step(x, exits, total if search.eager else n if few else int(exits.min()))
    return logits, exits
