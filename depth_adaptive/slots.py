"""Slots: the decoded positions of a search, each stored once and shared by the hypotheses that continue it.

A slot is one decoded position of one row. Beam search derives several hypotheses from one row; they share the slots of
that row. Each row holds the numbers of its slots, and only these numbers move when rows are reordered.

Axes: R rows (hypotheses of all sentences), t positions decoded so far, M slots that there is room for, D dimension of
the decoder.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FIRST_POSITIONS = 16  # the room that is reserved at first, in positions of every row


class Slots:
    """The slots of each row, and the state and exit of each slot.

    Attributes:
        history: (R, t) int64, the slots of each row.
        current: (R,) int64, the slot of each row at the last position.
        states: (M, D), the state with which the token of a slot left the decoder.
    """

    def __init__(self, like: Tensor, dim: int) -> None:
        """No slots yet; states are to have dimension ``dim`` and the dtype and device of ``like``."""
        self.states = like.new_empty(0, dim)
        self.history = torch.empty(0, 0, dtype=torch.int64, device=like.device)
        self.current = self.history.flatten()
        self._exit_of_slot = self.current
        self._used = 0

    @property
    def capacity(self) -> int:
        """Slots that there is room for."""
        return self.states.size(0)

    @property
    def length(self) -> int:
        """Positions of every row."""
        return self.history.size(1)

    @property
    def exits(self) -> Tensor:
        """The exits (R, t) of each row, up to the last step that has ended."""
        return self._exit_of_slot[self.history]

    def begin_step(self, rows: int) -> None:
        """Add a position to all ``rows``."""
        first, self._used = self._used, self._used + rows
        if self._used > self.capacity:
            capacity = max(FIRST_POSITIONS * rows, 2 * self.capacity, self._used)
            self.states = enlarged(self.states, capacity)
            self._exit_of_slot = enlarged(self._exit_of_slot, capacity)
        self.current = torch.arange(first, self._used, device=self.history.device)
        history = self.history if self.length else self.history.new_empty(rows, 0)
        self.history = torch.cat([history, self.current[:, None]], 1)

    def end_step(self, states: Tensor, exits: Tensor) -> None:
        """Store the states (R, D) with which the tokens of the last position have left, and their exits (R,)."""
        new = slice(self._used - states.size(0), self._used)
        self.states[new] = states
        self._exit_of_slot[new] = exits

    def reorder(self, order: Tensor) -> None:
        """Row i continues the history of the former row order[i]."""
        self.history = self.history[order]


class KeysValues:
    """Keys and values of the slots in the self-attention of one block.

    Attributes:
        table: (M, 2D), the key and then the value of each slot; arbitrary where nothing has been written.
    """

    def __init__(self, slots: Slots, dim: int) -> None:
        self.slots = slots
        self.table = slots.states.new_empty(slots.capacity, 2 * dim)
        self._filled = torch.zeros(slots.capacity, dtype=torch.bool, device=slots.states.device)
        self._complete_positions = 0  # first positions at which every row has keys and values

    def write_current(self, numbers: Tensor, keys_values: Tensor) -> None:
        """Store the keys and values (A, 2D) of the slots ``numbers`` (A,), which are of the last position."""
        self.write(numbers, keys_values)
        every_row = numbers.size(0) == self.slots.history.size(0)
        if every_row and self._complete_positions == self.slots.length - 1:
            self._complete_positions += 1

    def write(self, numbers: Tensor, keys_values: Tensor) -> None:
        """Store the keys and values (A, 2D) of the slots ``numbers`` (A,)."""
        if (capacity := self.slots.capacity) > self.table.size(0):
            self.table = enlarged(self.table, capacity)
            self._filled = F.pad(self._filled, (0, capacity - self._filled.size(0)))
        self.table.index_copy_(0, numbers, keys_values)
        self._filled.index_fill_(0, numbers, True)

    def missing(self, rows: Tensor | None) -> Tensor | None:
        """The slots in the histories of ``rows`` (A,), None: of all, that have no keys and values; None: all have.

        At the last position, those of ``rows`` have been written.
        """
        if self._complete_positions >= self.slots.length - 1:
            return None
        history = self.slots.history if rows is None else self.slots.history[rows]
        numbers = history[~self._filled[history]]
        return numbers.unique() if numbers.numel() else None


def enlarged(storage: Tensor, size: int) -> Tensor:
    """A copy of ``storage`` (M, ...) with room for ``size`` entries; the new ones are arbitrary."""
    larger = storage.new_empty(size, *storage.shape[1:])
    larger[: storage.size(0)] = storage
    return larger
