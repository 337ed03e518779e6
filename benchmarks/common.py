"""What the benchmarks share: paired timing, peak memory, the closing JSON line."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from recipes.training.measurement import peak_bytes


@dataclass
class Timing:
    """Seconds of repeated runs of one thing."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle run, in seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"{1e3 * self.median:9.1f} ms  [{1e3 * low:.1f} .. {1e3 * high:.1f}]"


def time_in_turn(functions: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Time the functions in turn (A B C A B C ...), so that a drift of the machine's speed meets all alike."""
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
    """How many times faster: the median over the rounds of slow/fast, pair by pair."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def peak_tensor_mb(function: Callable[[], object]) -> float:
    """`recipes.forecast.peak_bytes` in MB."""
    return peak_bytes(function) / 2**20


def machine() -> str:
    """One line on what the figures were taken on."""
    return (
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    )


def finish(figures: dict) -> None:
    """Print the figures as the last line, one JSON object."""
    print(json.dumps(figures))
