"""Decoding position by position: every row leaves at its own exit, and blocks compute only the rows still alive.

Axes: N blocks and exits (counted from 1), R rows (hypotheses of all sentences), A rows that are alive, S source,
B sentences, D dimension of the decoder, V vocabulary. What a slot is, :mod:`depth_adaptive.slots` says.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from depth_adaptive.block import Block
from depth_adaptive.halting import Policy
from depth_adaptive.packed_linear import PackedLinears
from depth_adaptive.slots import Slots
from depth_adaptive.source import Source

# With so few rows, a block takes the time of reading its weights, however many rows it computes. All rows are then
# computed until the last has left, which saves gathering the rows alive. The output of a row that has left is dropped:
# the row keeps its state, of which the next block computes keys and values, as it is to do for copied states.
FEW_ROWS = 8


class ExitDecoder(Protocol):
    """What a search needs of the decoder."""

    layers: nn.ModuleList
    embed_dim: int
    packed: PackedLinears

    def exit_logits(self, n: int, state: Tensor) -> Tensor:
        """Logits (..., V) of exit n for the output (..., D) of block n."""

    def logits_by_exit(self, states: Tensor, exits: Tensor) -> Tensor:
        """Logits (R, V) of states (R, D) that each have left at their exit (R,)."""


class Search:
    """What is kept from one step to the next, for one batch of sentences.

    Args:
        decoder: the decoder, in evaluation mode.
        encoder_out: (S, B, E), the encoder's output of the B sentences.
        padding: (B, S), True at padding; None if there is none.
        eager: whether upper blocks compute the keys and values of copied states at once, or when a row needs them.
    """

    def __init__(self, decoder: ExitDecoder, encoder_out: Tensor, padding: Tensor | None, *, eager: bool) -> None:
        self.decoder = decoder
        self.eager = eager
        self.source = Source(encoder_out, padding)
        self.slots = Slots(encoder_out, decoder.embed_dim)
        self._blocks: list[Block | None] = [None] * len(decoder.layers)  # those that some row has reached

    @property
    def depth(self) -> int:
        """The number N of blocks."""
        return len(self._blocks)

    @property
    def exits(self) -> Tensor:
        """The exits (R, t) of each row at the positions decoded so far."""
        return self.slots.exits

    def block(self, n: int) -> Block:
        """Block n, created when it is first used."""
        block = self._blocks[n - 1]
        if block is None:
            layer = self.decoder.layers[n - 1]
            block = Block(layer, self.decoder.packed, self.source, self.slots, eager=self.eager)
            self._blocks[n - 1] = block
        return block

    def step(self, policy: Policy, x: Tensor, tokens: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one position of every row.

        Args:
            x: (R, D), the embedded input tokens.
            tokens: (R,) int64, these tokens.
            sentences: (R,) int64, the sentence of each row.

        Returns:
            The logits (R, V) and the exits (R,) int64.
        """
        self.slots.begin_step(x.size(0))
        step = _Step(self, policy, x, tokens, sentences)
        step.run()
        logits = step.all_logits()
        self.slots.end_step(step.states, step.exits)
        return logits, step.exits

    def reorder(self, order: Tensor) -> None:
        """Row i continues the hypothesis of the former row order[i]."""
        self.slots.reorder(order)


class _Step:
    """One position of all rows, on its way through the blocks.

    Attributes:
        states: (R, D), the output of the last block that each row has gone through.
        exits: (R,) int64, the exit of each row; N while it is alive.
        alive: (A,) int64, the rows that have not left; None: all.
        logits: (R, V), the logits that the policy has computed for rows that have left; None: no such.
    """

    def __init__(self, search: Search, policy: Policy, x: Tensor, tokens: Tensor, sentences: Tensor) -> None:
        self.search, self.policy, self.tokens, self.sentences = search, policy, tokens, sentences
        self.states = x
        self.exits = torch.full_like(tokens, search.depth)
        self.alive: Tensor | None = None
        self.logits: Tensor | None = None
        self.compacts = search.eager or x.size(0) > FEW_ROWS
        self.planned: Tensor | None = None  # (R,) exits, where the policy knows them after the first block

    def run(self) -> None:
        """Go through the blocks until the last row has left."""
        for n in range(1, self.search.depth):
            state = self.compute(n)
            if n == 1:
                self.planned = self.plan(state)
            logits = _OnDemand(partial(self.search.decoder.exit_logits, n, state))
            stops = self.stops(n, state, logits)
            leaving = stops.nonzero().squeeze(1)  # among the alive
            if leaving.numel():
                self.leave(n, leaving, logits.value)
                staying = (~stops).nonzero().squeeze(1)
                self.alive = staying if self.alive is None else self.alive[staying]
                if not self.alive.numel():
                    return
        self.compute(self.search.depth)

    def compute(self, n: int) -> Tensor:
        """Run block n. Returns its output (A, D) of the rows alive, and stores it in ``states``."""
        block = self.search.block(n)
        if self.alive is None:
            self.states = block(self.states, None, self.sentences)
            return self.states
        if self.compacts:
            state = block(self.states[self.alive], self.alive, self.sentences)
        else:
            state = block(self.states, None, self.sentences)[self.alive]
        self.states = self.states.index_copy(0, self.alive, state)
        return state

    def plan(self, first: Tensor) -> Tensor | None:
        """The exits (R,), if the policy knows them from the output (R, D) of the first block."""
        positions = torch.full_like(self.tokens, self.search.slots.length - 1)
        return self.policy.planned(self.search.source.mean[self.sentences], first, self.tokens, positions)

    def stops(self, n: int, state: Tensor, logits: Callable[[], Tensor]) -> Tensor:
        """(A,) bool: which of the rows alive leave after block n, whose output is ``state`` (A, D)."""
        if self.planned is None:
            return self.policy.stops(n, state, logits)
        return (self.planned if self.alive is None else self.planned[self.alive]) == n

    def leave(self, n: int, leaving: Tensor, logits: Tensor | None) -> None:
        """Let rows leave at exit n: ``leaving``, among the alive, whose ``logits`` (A, V) may be known."""
        rows = leaving if self.alive is None else self.alive[leaving]
        self.exits[rows] = n
        if logits is not None:
            if self.logits is None:
                self.logits = logits.new_empty(self.exits.size(0), logits.size(1))
            self.logits[rows] = logits[leaving]
        if self.search.eager:
            for upper in range(n + 1, self.search.depth + 1):
                self.search.block(upper).fill(self.search.slots.current[rows], self.states[rows])

    def all_logits(self) -> Tensor:
        """The logits (R, V) of all rows, once :meth:`run` has ended."""
        decoder = self.search.decoder
        if self.logits is None:
            return decoder.logits_by_exit(self.states, self.exits)
        if self.alive is not None and self.alive.numel():
            self.logits[self.alive] = decoder.exit_logits(self.search.depth, self.states[self.alive])
        return self.logits


class _OnDemand:
    """A tensor that is computed at its first use; ``value`` is None before."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self.value: Tensor | None = None

    def __call__(self) -> Tensor:
        if self.value is None:
            self.value = self._compute()
        return self.value
