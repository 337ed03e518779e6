"""Paired timing, peak memory and the closing JSON line of all benchmarks."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass
class Timing:
    """Seconds that the runs of one function took."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The median run, in seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"{1e3 * self.median:9.1f} ms  [{1e3 * low:.1f} .. {1e3 * high:.1f}]"


def time_in_turn(functions: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Time the functions in turn (A B C A B C ...), so that a drift of the machine's speed affects all alike."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(values) for name, values in seconds.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """The speedup of `fast` over `slow`: the median over the rounds of slow/fast, pair by pair."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that tensors created during the call occupy at one time, according to PyTorch's CPU allocator.

    Tensors allocated before the call do not count, nor does memory that the C library keeps beyond what is in use.
    """
    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what the profiler's C++ code writes to standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_tensor_mb(function: Callable[[], object]) -> float:
    """`peak_bytes` in units of 2^20 bytes."""
    return peak_bytes(function) / 2**20


def machine() -> str:
    """One line that describes the machine and the software."""
    return (
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    )


def finish(figures: dict) -> None:
    """Print the figures as the last line, one JSON object."""
    print(json.dumps(figures))
