"""The slots of a memory that are read: the paper's two figures (section 4.2), and the data of a picture.

Axes: T tokens, H heads, K selected slots, n_slots = N·N for product keys.
"""

import math
from typing import Any

import torch
from torch import Tensor

from thoth_core.errors import UserError


class SlotUsage:
    """Weights accumulated over tokens, slot by slot and head by head.

    ``weights`` (H, n_slots) float64 may be summed over processes before the figures are computed.
    """

    def __init__(self, *, n_slots: int, heads: int, device: torch.device | str | None = None) -> None:
        self.weights = torch.zeros(heads, n_slots, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, slots: Tensor, weights: Tensor) -> None:
        """Record one lookup: slots (T, H, K) int64 and weights (T, H, K)."""
        places = slots.transpose(0, 1).flatten(1).to(self.weights.device)  # (H, T·K)
        self.weights.scatter_add_(1, places, weights.transpose(0, 1).flatten(1).to(self.weights))

    def reset(self) -> None:
        """Forget the recorded lookups."""
        self.weights.zero_()

    def share(self) -> float:
        """The share of slots that had a weight above zero from any head: "memory usage" in the paper."""
        return (self.weights > 0).any(dim=0).double().mean().item()

    def kl(self) -> float:
        """Divergence of the usage from uniform, log n_slots + sum z log z with z the normalised weights: 0 is best.

        Raises:
            RuntimeError: no lookup was recorded.
            UserError: a recorded weight is not finite.
        """
        total = self.weights.sum(dim=0)
        if not total.isfinite().all():
            raise UserError(
                "the weights of the slots are not finite: the training diverged; lower --lr or --memory-lr, or set "
                "--clip-norm 1"
            )
        if not total.sum() > 0:
            raise RuntimeError("no lookup was recorded: slot usage is known after a forward pass only")
        z = total / total.sum()
        return max(0.0, math.log(z.numel()) + torch.xlogy(z, z).sum().item())

    def figures(self) -> dict[str, Any]:
        """``share`` and ``kl``, rounded as in the log, and lists of both for each of the H heads alone."""
        each = []
        for weights in self.weights:
            head = SlotUsage(n_slots=weights.numel(), heads=1, device=weights.device)
            head.weights = weights[None]
            each.append(head)
        return {
            "used": round(self.share(), 5),
            "kl": round(self.kl(), 4),
            "used_by_head": [round(head.share(), 5) for head in each],
            "kl_by_head": [round(head.kl(), 4) for head in each],
        }

    def picture(self, *, cells: int = 64) -> Tensor:
        """Each head's usage on the plane of its sub-keys (rows: first half, columns: second half), coarsened.

        Args:
            cells: the most cells along an axis.

        Returns:
            (H, c, c) float64 with c <= cells: each cell's share of the head's weight; a head without any has zeros.

        Raises:
            ValueError: n_slots is no square (a flat memory has no such plane).
        """
        heads, n_slots = self.weights.shape
        n = math.isqrt(n_slots)
        if n * n != n_slots:
            raise ValueError(f"only a memory of n·n slots has a plane of sub-keys, given {n_slots} slots")
        width = -(-n // cells)
        padding = -n % width
        plane = torch.nn.functional.pad(self.weights.view(heads, n, n), (0, padding, 0, padding))
        c = plane.size(1) // width
        sums = plane.view(heads, c, width, c, width).sum(dim=(2, 4))
        return sums / sums.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
