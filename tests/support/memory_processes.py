"""Run by two processes (`command_lines.start_processes`): one step of value tables alone, without fairseq.

    python -m tests.support.memory_processes FOLDER

Writes FOLDER/rankN.pt: for every (sharded, n_slots) of CASES the bytes that the step received from the other process,
and the states of the table and of its optimizer.
"""

import itertools
import sys

import torch
import torch.distributed as dist

from memory_layers import RowAdam, ValueTable

TOKENS, BAG, DIM = (5, 3), 4, 6  # tokens of each process
CASES = tuple(itertools.product((False, True), (16, 1000)))


def step(table: ValueTable, rank: int) -> tuple[RowAdam, int]:
    """One step of the tokens of process ``rank``: its optimizer, and the bytes received."""
    draw = torch.Generator().manual_seed(rank)
    slots = torch.randint(table.n_slots, (TOKENS[rank], BAG), generator=draw)
    weights = torch.rand(TOKENS[rank], BAG, generator=draw).requires_grad_()
    table.bag(slots, weights).square().sum().backward()
    rows = RowAdam([table])
    received = rows.collect()
    rows.step()
    return rows, received


def main() -> None:
    dist.init_process_group("gloo")
    rank, results = dist.get_rank(), {}
    for sharded, n_slots in CASES:
        torch.manual_seed(0)
        table = ValueTable(n_slots, DIM, sharded=sharded)
        rows, received = step(table, rank)
        results[sharded, n_slots] = received, table.state_dict(), rows.state_dict()
    torch.save(results, f"{sys.argv[1]}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
