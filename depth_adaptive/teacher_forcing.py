"""What happens between the blocks in a pass over whole target sentences: copying of states, and choice of exits.

``Decoder.run_blocks`` calls one of these after every block. Axes: N blocks and exits (counted from 1), B batch,
T target, D dimension of the decoder, E that of the encoder, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from depth_adaptive.halting import Policy

#: From a block's number n, input and output, (T, B, D) each, to the state (T, B, D) that goes on.
AfterBlock = Callable[[int, Tensor, Tensor], Tensor]


def go_on(n: int, below: Tensor, output: Tensor) -> Tensor:
    """Every token goes through every block."""
    return output


class GivenExits:
    """Tokens leave at the given ``exits`` (B, T); blocks above copy their states (section 3)."""

    def __init__(self, exits: Tensor) -> None:
        self.exits = exits

    def __call__(self, n: int, below: Tensor, output: Tensor) -> Tensor:
        return torch.where((self.exits >= n).t().unsqueeze(-1), output, below)


class PolicyExits(GivenExits):
    """Tokens leave where a policy says, which sees their states on the way.

    Args:
        exits: number N of exits.
        tokens: (B, T) int64, the input tokens.
        sentence: (B, E), the mean encoder output.
        exit_logits: from n and states (B, T, D) to the logits (B, T, V) of exit n.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        exits: int,
        tokens: Tensor,
        sentence: Tensor,
        exit_logits: Callable[[int, Tensor], Tensor],
    ) -> None:
        super().__init__(torch.full_like(tokens, exits))
        self.policy, self.last, self.exit_logits = policy, exits, exit_logits
        self.tokens = tokens
        self.positions = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
        self.sentence = sentence[:, None].expand(-1, tokens.size(1), -1)
        self.is_planned = False

    def __call__(self, n: int, below: Tensor, output: Tensor) -> Tensor:
        state = super().__call__(n, below, output)
        if n < self.last:
            self._decide(n, state.transpose(0, 1))
        return state

    def _decide(self, n: int, state: Tensor) -> None:
        """Set the exits of the tokens that leave after block n, of state (B, T, D)."""
        if n == 1:
            planned = self.policy.planned(self.sentence, state, self.tokens, self.positions)
            if planned is not None:
                self.exits, self.is_planned = planned, True
        if not self.is_planned:
            stops = self.policy.stops(n, state, lambda: self.exit_logits(n, state))
            self.exits = self.exits.masked_fill(stops & (self.exits > n), n)
