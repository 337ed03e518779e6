"""The data of one update of a table's rows: the gradient, the optimizer's state, and the numbers of the step.

Axes: T tokens, bag rows read for one token, n_slots rows of the table, V value dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RowGradients(NamedTuple):
    """The gradient of a table in factors: the sum over t and b of weights[t, b] · grad[t] into row slots[t, b]."""

    grad: Tensor  # (T, V)
    slots: Tensor  # (T, bag) int64
    weights: Tensor  # (T, bag)

    @classmethod
    def concatenated(cls, parts: Sequence["RowGradients"]) -> "RowGradients":
        """Join several gradients in their order; bags are widened to the widest."""
        if len(parts) == 1:
            return parts[0]
        bag = max(part.slots.size(1) for part in parts)
        grads, slots, weights = zip(*(part.widened(bag) for part in parts), strict=True)
        return cls(torch.cat(grads), torch.cat(slots), torch.cat(weights))

    def widened(self, bag: int) -> "RowGradients":
        """The same gradient with wider bags, filled up with each token's first slot at a weight of 0."""
        missing = bag - self.slots.size(1)
        if missing == 0:
            return self
        slots = torch.cat([self.slots, self.slots[:, :1].expand(-1, missing)], dim=1)
        return RowGradients(self.grad, slots, nn.functional.pad(self.weights, (0, missing)))


class AdamState(NamedTuple):
    """What Adam keeps of a table."""

    exp_avg: Tensor  # (n_slots, V), float32 (float64 for float64 values)
    exp_avg_sq: Tensor  # (n_slots, V), likewise
    master: Tensor | None = None  # (n_slots, V): the float32 copy of values in half precision


class AdamStep(NamedTuple):
    """The numbers of one step of Adam, in the order in which the registered operator takes them."""

    scale: float  # factor of the gradient
    lr: float
    beta1: float
    beta2: float
    eps: float  # added outside the root
    weight_decay: float  # decoupled
    step: int  # number of this step for the bias correction, from 1

    @property
    def size(self) -> float:
        """The learning rate with the corrections of both moments' bias."""
        return self.lr * (1 - self.beta2**self.step) ** 0.5 / (1 - self.beta1**self.step)

    @property
    def decay(self) -> float:
        """The factor of the values before the step."""
        return 1 - self.lr * self.weight_decay
