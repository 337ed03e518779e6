"""Where the layers of fairseq's models record their slot usage: for a caller, or for a validation's metrics.

What is recorded belongs to the calling thread (context variables): threads that translate with one model keep apart.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch.distributed as dist
from fairseq.logging import metrics

from memory_layers.exchange import processes
from memory_layers.product_key import Memory
from memory_layers.usage import SlotUsage

_requested: ContextVar[Mapping[Memory, SlotUsage]] = ContextVar("requested", default=MappingProxyType({}))
_ignored: ContextVar[bool] = ContextVar("ignored", default=False)


@contextmanager
def recorded(memories: Mapping[str, Memory]) -> Iterator[dict[str, SlotUsage]]:
    """Record what these memories read in evaluation mode, in this thread, within a ``with`` block; by name."""
    records = {name: memory.new_usage() for name, memory in memories.items()}
    by_memory = {memory: records[name] for name, memory in memories.items()}
    token = _requested.set({**_requested.get(), **by_memory})
    try:
        yield records
    finally:
        _requested.reset(token)


@contextmanager
def ignored_batch() -> Iterator[None]:
    """Leave the batch of this ``with`` block out of a validation's usage."""
    token = _ignored.set(True)
    try:
        yield
    finally:
        _ignored.reset(token)


def record_of(memory: Memory, name: str, *, generating: bool) -> SlotUsage | None:
    """Where a layer records the slots that it reads, or None.

    A caller's record (:func:`recorded`) comes first. During a validation it is that of fairseq's metrics, which appear
    in the log as ``memory_used_NAME`` and ``memory_kl_NAME``; decoding (``generating``) does not count there.
    """
    if memory.training:
        return None
    requested = _requested.get().get(memory)
    return requested if requested is not None or generating else _record_of_validation(memory, name)


def _record_of_validation(memory: Memory, name: str) -> SlotUsage | None:
    # fairseq opens a new root of its metrics for every validation: the record lives and dies with that.
    active = metrics.get_active_aggregators()
    if not active or active[0] is metrics.get_meters("default"):
        return None
    records = vars(active[0]).setdefault("memory_usage", {})
    if name not in records:
        usage = records[name] = memory.new_usage()
        metrics.log_derived(f"memory_used_{name}", lambda _: round(_of_all_processes(usage).share(), 5))
        metrics.log_derived(f"memory_kl_{name}", lambda _: round(_of_all_processes(usage).kl(), 4))
    return None if _ignored.get() else records[name]


def _of_all_processes(usage: SlotUsage) -> SlotUsage:
    """The sum over processes; all of them ask for their metrics at the end of a validation."""
    if processes() == 1:
        return usage
    total = SlotUsage(n_slots=usage.weights.size(1), heads=usage.weights.size(0), device=usage.weights.device)
    total.weights.copy_(usage.weights)
    dist.all_reduce(total.weights)
    return total
