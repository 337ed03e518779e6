"""Exchange of rows between the processes of torch.distributed, with a count of the bytes.

The rows travel as bytes, since no backend takes every dtype; their number may differ between the processes.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """The number of processes; 1 if torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Exchange:
    """Collective calls, and the number of bytes received from other processes (``received``)."""

    def __init__(self) -> None:
        self.received = 0

    def all_gather(self, rows: Tensor) -> list[Tensor]:
        """Every process's rows (T_r, ...), in the order of the processes; sizes but the first must be equal."""
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.empty_like(count) for _ in range(processes())]
        dist.all_gather(counts, count)
        lengths = [int(length) for length in counts]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather([as_bytes(part) for part in gathered], as_bytes(padded))
        self.received += (len(lengths) - 1) * padded.numel() * padded.element_size()
        return [part[:length] for part, length in zip(gathered, lengths, strict=True)]

    def all_to_all(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Send the first send[0] rows (·, C) to process 0, the next send[1] to process 1, ...; receive likewise."""
        width = rows.size(1) * rows.element_size()
        result = rows.new_empty(sum(receive), rows.size(1))
        sizes = [n * width for n in receive], [n * width for n in send]
        dist.all_to_all_single(as_bytes(result), as_bytes(rows.contiguous()), *sizes)
        self.received += width * (sum(receive) - receive[dist.get_rank()])
        return result


def as_bytes(rows: Tensor) -> Tensor:
    """A contiguous tensor's storage, uint8, one-dimensional."""
    return rows.view(-1).view(torch.uint8)
