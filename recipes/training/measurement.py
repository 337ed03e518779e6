"""Memory and time of a planned training, measured by training some updates of it."""

import dataclasses
import itertools
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_compat import events
from recipes.training import launcher
from recipes.training.fairseq_options import LIMITS
from recipes.training.launcher import Symptoms
from recipes.training.plan import Plan
from recipes.training.run import Run
from thoth_core.errors import UserError


@dataclass(frozen=True)
class Measurement:
    """What some updates took. `bytes`: the largest process on a CPU, the first device's tensors on a GPU."""

    device: str
    updates: int
    seconds_per_update: float
    bytes: int | None

    def describe(self, planned_updates: int | None) -> str:
        """The measurement for people; `planned_updates` are those of the whole training, if known."""
        lines = []
        if self.bytes is not None:
            what = "the largest process, PyTorch included" if self.device == "cpu" else "tensors on the first GPU"
            lines.append(f"memory, measured: {size(self.bytes)} ({what}, {self.updates} updates)")
        whole = ""
        if planned_updates is not None:
            end = duration(self.seconds_per_update * planned_updates)
            whole = f", {end} for all updates, without validation"
        lines.append(f"time, measured: {self.seconds_per_update:.3g} s per update{whole}")
        return "\n".join(lines)


def measure(plan: Plan, updates: int) -> Measurement:
    """Train `updates` updates as planned in a folder that is removed again.

    The first fifth of them, in which caches fill, is not timed.

    Raises:
        UserError: the training fails.
    """
    symptoms = Symptoms()
    moments: dict[int, float] = {}  # seconds of training by update
    free: list[float] = []  # GB on the first GPU

    def on_event(event: events.AnyEvent) -> None:
        symptoms.add_event(event)
        if isinstance(event, events.Figures) and event.kind == "train" and event.seconds is not None:
            moments[event.updates] = event.seconds
            if "gb_free" in (event.model_extra or {}):
                free.append((event.model_extra or {})["gb_free"])
            print(f"\rmeasuring: update {event.updates} of {updates}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="thoth-measure-") as scratch:
        trial = _trial(plan, updates, Run(Path(scratch) / "run"))
        trial.run.create()
        status = launcher.run(
            trial.command(),
            threads=plan.threads,
            lock=None,
            report=trial.run.progress_path,
            on_line=symptoms.add_line,
            on_event=on_event,
        )
    print(file=sys.stderr)
    if status != 0:
        raise UserError(f"measuring stopped: {symptoms.cause(status)}")
    timed = [(seconds, update) for update, seconds in sorted(moments.items()) if update > updates // 5]
    steps = [(b - a) / (n - m) for (a, m), (b, n) in itertools.pairwise(timed)]
    if not steps:
        raise UserError("measuring stopped: the training ended too early; give --measure more updates")
    return Measurement(plan.devices.kind, updates, statistics.mean(steps), _peak(plan.devices.kind, free))


def _trial(plan: Plan, updates: int, run: Run) -> Plan:
    """The plan, shortened to `updates` updates in another folder, without validation and checkpoints."""
    shortened = {"max-update": updates, "log-interval": 1, "disable-validation": True, "no-save": True}
    kept = {name: value for name, value in plan.options.items() if name not in LIMITS}
    return dataclasses.replace(plan, run=run, options=kept | shortened, hydra=False)


def _peak(device: str, free: Sequence[float]) -> int | None:
    """Bytes of the largest child process so far; on a GPU, what fairseq did not report as free on the first one."""
    if device == "cpu":
        kilobyte = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilobyte
    import torch

    return round(torch.cuda.get_device_properties(0).total_memory - min(free) * 2**30) if free else None


def size(number: float) -> str:
    """`412 MB` or `1.3 GB`, in powers of 1,000."""
    if number >= 1e9:
        return f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.0f} MB" if number >= 1e7 else f"{number / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `7 h 12 min` or `3 days 4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
