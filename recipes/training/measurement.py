"""What a training will need: memory, updates and time, before it is begun.

Parameters, gradients and the optimizer's states follow from the model. What the passes over a batch need is found by a
forward and backward pass over a few sentences of real batches, here on the CPU: of the largest for the memory, of the
middle one for the time; both are scaled to the whole batch. `measure` trains some updates.
"""

import dataclasses
import itertools
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.console import messages
from recipes.training import fairseq_config, launcher
from recipes.training.events import parse
from recipes.training.plan import Plan, threads_for
from recipes.training.run import Run
from thoth_core.errors import UserError

# Numbers that an optimizer keeps of each parameter.
STATES = {"adam": 2, "product_key_adam": 2, "adamax": 2, "adadelta": 2, "adagrad": 1, "nag": 1, "sgd": 0, "lamb": 2}

# Sentences of a batch that are tried: all of it would take as long as an update.
SHARE, FEWEST = 8, 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while training. `states` is None for an optimizer that STATES does not know."""

    weights: int
    gradients: int
    states: int | None
    passes: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + (self.states or 0) + self.passes


@dataclass(frozen=True)
class Trial:
    """A pass over `tried` of a batch's `sentences`, the longest of which has (source, target) sub-words `shape`."""

    sentences: int
    tried: int
    shape: tuple[int, ...]
    bytes: int
    seconds: float

    @property
    def factor(self) -> float:
        return self.sentences / self.tried


@dataclass(frozen=True)
class Forecast:
    """`batches` are those of an epoch on all devices; `updates` and `epochs`, if known, those until a limit is met."""

    parameters: int
    numbers: str
    optimizer: str
    memory: Memory
    largest: Trial
    middle: Trial
    sentences: int
    batches: int
    batches_an_update: int
    update_freq: int
    updates: int | None
    epochs: float | None
    device: str
    threads: int


@dataclass(frozen=True)
class Measured:
    """What some updates took. `bytes`: the largest process on a CPU, the first device's tensors on a GPU."""

    updates: int
    seconds_an_update: float
    bytes: int | None


def expect(plan: Plan) -> Forecast:
    """Foretell the training; a UserError where it cannot be built."""
    import torch

    found, task, model = fairseq_config.build(plan.arguments())
    parameters = sum(p.numel() for p in model.parameters())
    half = found.common.bf16 or found.common.fp16
    efficient = found.common.memory_efficient_bf16 or found.common.memory_efficient_fp16
    torch.set_num_threads(threads_for(plan.processes))
    with messages.quiet_libraries():
        task.load_dataset("train")
        dataset, batches = task.dataset("train"), _batches(found, task, model)
        criterion = task.build_criterion(found.criterion)
        if half:
            model.bfloat16()  # as large as float16, which CPUs do not compute with
        model.train()
        by_size = sorted(batches, key=lambda batch: _positions(dataset, batch))
        # Logits grow with the tokens, of which a batch of shorter sentences may hold more.
        wide = max(batches, key=lambda batch: _tokens(dataset, batch))
        trials = [_try(model, criterion, dataset, batch) for batch in (by_size[-1], wide)]
        largest = max(trials, key=lambda trial: trial.bytes * trial.factor)
        middle = _try(model, criterion, dataset, by_size[len(by_size) // 2])
    update_freq = _number(found.optimization.update_freq)
    batches_an_update = update_freq * plan.all_processes
    updates, epochs = _limits(plan, len(batches), batches_an_update)
    return Forecast(
        parameters=parameters,
        numbers=_numbers(half=half, efficient=efficient, amp=found.common.amp),
        optimizer=found.optimizer._name,
        memory=_memory(model, found.optimizer._name, half=half, efficient=efficient, passes=largest),
        largest=largest,
        middle=middle,
        sentences=sum(map(len, batches)),
        batches=len(batches),
        batches_an_update=batches_an_update,
        update_freq=update_freq,
        updates=updates,
        epochs=epochs,
        device=plan.device,
        threads=threads_for(plan.processes),
    )


def _batches(found: Any, task: Any, model: Any) -> list[Any]:
    """The first epoch's batches of the training set, as numbers of sentences, before they go to the devices."""
    from fairseq.utils import resolve_max_positions

    batches = list(
        task.get_batch_iterator(
            dataset=task.dataset("train"),
            max_tokens=found.dataset.max_tokens,
            max_sentences=found.dataset.batch_size,
            max_positions=resolve_max_positions(task.max_positions(), model.max_positions(), found.dataset.max_tokens),
            ignore_invalid_inputs=True,
            required_batch_size_multiple=found.dataset.required_batch_size_multiple,
            seed=found.common.seed,
        ).frozen_batches
    )
    if not batches:
        raise UserError(
            "no training sentence fits: all are longer than max-tokens, max-source-positions or max-target-positions; "
            "raise them"
        )
    return batches


def _lengths(dataset: Any, sentence: int) -> tuple[int, ...]:
    """Sub-words of a sentence's source and target, or of its only text."""
    size = dataset.size(int(sentence))
    return tuple(map(int, size)) if hasattr(size, "__len__") else (int(size),)


def _longest(dataset: Any, batch: Sequence[int]) -> tuple[int, ...]:
    """The longest source and the longest target of a batch, or the longest text."""
    return tuple(max(lengths) for lengths in zip(*(_lengths(dataset, i) for i in batch), strict=True))


def _positions(dataset: Any, batch: Sequence[int]) -> int:
    """Sentences times the longest source times the longest target: cells of a grid, weights of an attention."""
    longest = _longest(dataset, batch)
    return len(batch) * longest[0] * longest[-1]


def _tokens(dataset: Any, batch: Sequence[int]) -> int:
    """Sub-words of a batch, padding included."""
    return len(batch) * sum(_longest(dataset, batch))


def _try(model: Any, criterion: Any, dataset: Any, batch: Sequence[int]) -> Trial:
    """Pass over the longest sentences of a batch, forward and backward."""
    tried = min(len(batch), max(FEWEST, len(batch) // SHARE))
    longest = sorted(batch, key=lambda i: max(_lengths(dataset, i)))[-tried:]
    sample = dataset.collater([dataset[int(i)] for i in longest])

    def passes() -> None:
        loss = criterion(model, sample)[0]
        loss.backward()
        for module in model.modules():
            getattr(module, "pending", []).clear()  # of a table of values: what an update would use

    passes()  # makes the gradients, which are counted elsewhere
    used = peak_bytes(passes)
    begun = time.perf_counter()
    passes()
    return Trial(len(batch), tried, _longest(dataset, longest), used, time.perf_counter() - begun)


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that tensors made during the call take at one time, by PyTorch's CPU allocator.

    What is allocated before the call does not count, nor what the C library keeps beyond what is in use.
    """
    from torch.profiler import ProfilerActivity, profile

    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


@contextmanager
def _silent() -> Iterator[None]:
    """Without standard error: the profiler writes notes of its own there, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _memory(model: Any, optimizer: str, *, half: bool, efficient: bool, passes: Trial) -> Memory:
    """Bytes of what an update reads and writes, by the number formats of fairseq's optimizers."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # A table of values has no gradient, and its moments are product_key_adam's.
    table = sum(p.numel() for p in model.parameters() if not p.requires_grad) * (optimizer == "product_key_adam")
    frozen = sum(p.numel() for p in model.parameters()) - trained - table
    size = 2 if half else 4
    copies = 4 if half and not efficient else 0  # the optimizer's own, in float32, of parameters and of gradients
    states = STATES.get(optimizer)
    return Memory(
        weights=(trained + table) * (size + copies) + frozen * size,
        gradients=trained * (size + copies),
        states=None if states is None else 4 * states * (trained + table),
        passes=round(passes.bytes * passes.factor),
    )


def _numbers(*, half: bool, efficient: bool, amp: bool) -> str:
    if half:
        return "half precision" if efficient else "half precision, and a float32 copy"
    return "float32 (passes under --amp need less)" if amp else "float32"


def _number(update_freq: Any) -> int:
    """The first of fairseq's list, one for each epoch, which a single number may stand for."""
    return int(update_freq[0] if hasattr(update_freq, "__getitem__") else update_freq)


def _limits(plan: Plan, batches: int, batches_an_update: int) -> tuple[int | None, float | None]:
    """(updates, epochs) until max-update or max-epoch ends the training; None, None where only others do."""
    an_epoch = -(-batches // batches_an_update)
    ends = [int(str(plan.limits["max-update"]))] if "max-update" in plan.limits else []
    if "max-epoch" in plan.limits:
        ends.append(int(str(plan.limits["max-epoch"])) * an_epoch)
    return (min(ends), min(ends) / an_epoch) if ends else (None, None)


# --- measuring ----------------------------------------------------------------------------------------------


def measure(plan: Plan, updates: int | None) -> Measured | None:
    """Train `updates` updates as planned in a folder that is removed again; None without updates.

    Raises a UserError if that fails. The first fifth of them, in which caches fill, is not timed.
    """
    if updates is None:
        return None
    with tempfile.TemporaryDirectory(prefix="thoth-measure-") as scratch, open(Path(scratch) / "lock", "w") as lock:
        run = Run(Path(scratch) / "run")
        run.create()
        asked = {"max-update": updates, "log-interval": 1, "disable-validation": True, "no-save": True}
        ends = ("patience", "minutes", "max-epoch")
        kept = {name: value for name, value in plan.options.items() if name not in ends}
        trial = dataclasses.replace(plan, run=run, options=kept | asked, hydra=False)
        recent: list[str] = []
        moments: dict[int, float] = {}
        free: list[float] = []

        def on_line(line: str) -> None:
            recent.append(line)
            if (record := parse(line)) is not None and record["kind"] == "train":
                moments[record["updates"]] = time.monotonic()
                print(f"\rmeasuring: update {record['updates']} of {updates}", end="", file=sys.stderr, flush=True)
            if found := re.search(r'"gb_free": "?([\d.]+)', line):
                free.append(float(found[1]))

        status = launcher.run(trial.command(), threads=threads_for(plan.processes), lock=lock, on_line=on_line)
        print(file=sys.stderr)
        if status != 0:
            raise UserError(f"measuring stopped: {launcher.cause(recent[-200:])}")
    timed = [(moment, number) for number, moment in sorted(moments.items()) if number > updates // 5]
    steps = [(b - a) / (n - m) for (a, m), (b, n) in itertools.pairwise(timed)]
    return Measured(updates, statistics.mean(steps), _peak(plan.device, free))


def _peak(device: str, free: Sequence[float]) -> int | None:
    """Bytes of the largest child process so far, or of the first GPU by what fairseq's log says was free there."""
    if device == "cpu":
        kilobyte = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilobyte
    import torch

    return round(torch.cuda.get_device_properties(0).total_memory - min(free) * 2**30) if free else None


# --- telling ------------------------------------------------------------------------------------------------


def table(found: Forecast, measured: Measured | None) -> str:
    """The forecast for people."""
    memory, largest, middle = found.memory, found.largest, found.middle
    shape = " x ".join(map(str, largest.shape))
    rows = [
        ("parameters", size(memory.weights), found.numbers),
        ("gradients", size(memory.gradients), ""),
        ("optimizer", "unknown" if memory.states is None else size(memory.states), found.optimizer),
        (
            "largest batch",
            size(memory.passes),
            f"{largest.sentences} sentences of up to {shape} sub-words: "
            f"a pass over {largest.tried} of them, counted on the CPU, times {largest.factor:.3g}",
        ),
        ("together", size(memory.total), "on each device, without what libraries need"),
    ]
    lines = [f"parameters: {found.parameters:,}", "memory, estimated:"]
    lines += [f"  {name:<14} {value:>9}   {note}".rstrip() for name, value, note in rows]
    if measured is not None and measured.bytes is not None:
        what = "the largest process, PyTorch and all" if found.device == "cpu" else "tensors on the first GPU"
        lines += [f"memory, measured: {size(measured.bytes)} ({what}, {measured.updates} updates)"]
    lines += [
        f"batches: {found.batches:,} an epoch, of {found.sentences / found.batches:.1f} sentences on average; "
        f"{found.batches_an_update} to an update",
        f"updates: {'until another limit' if found.updates is None else f'{found.updates:,}'}"
        + ("" if found.epochs is None else f" ({found.epochs:,.1f} epochs)"),
    ]
    if measured is not None:
        return "\n".join([*lines, "time, measured: " + _time(found, measured.seconds_an_update)])
    if found.device == "gpu":
        return "\n".join([*lines, "time: not known before it has run on this GPU; --measure 100 tells"])
    seconds = middle.seconds * middle.factor * found.update_freq
    rough = (
        f"rough: one pass over {middle.tried} of a middling batch's {middle.sentences} sentences; --measure 20 tells"
    )
    return "\n".join([*lines, f"time, estimated: {_time(found, seconds)} ({rough})"])


def _time(found: Forecast, seconds: float) -> str:
    """`0.52 s an update, 7 h 12 min to the end without validation`."""
    whole = "" if found.updates is None else f", {duration(seconds * found.updates)} to the end, validation not counted"
    return f"{seconds:.3g} s an update{whole}"


def size(number: float) -> str:
    """`412 MB` or `1.3 GB`, in powers of 1,000."""
    return (
        f"{number / 1e9:.1f} GB"
        if number >= 1e9
        else f"{number / 1e6:.0f} MB"
        if number >= 1e7
        else f"{number / 1e6:.1f} MB"
    )


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `7 h 12 min` or `3 days 4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
