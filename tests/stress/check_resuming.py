"""Are trainings that are killed and resumed the same, bit for bit, as those left alone?

`python tests/stress/check_resuming.py`: trains a small Pervasive Attention model with recipes/train.sh twice without
interruption, then once more with SIGKILL at random moments (of the recipe and all that it started, of the training
process alone, of the recipe's process alone), resuming it at once each time. What must be the same: every tensor of
every checkpoint, the optimizer's state (float32 parameters and moments), where the training stands, and every loss
reported. Exit status 1 if anything differs. A few minutes on two cores.
"""

import argparse
import atexit
import contextlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.common import finish
from fairseq_compat import checkpoints
from recipes.storage.provenance import ROOT
from recipes.training.run import Run
from tests.support.processes import with_standard_input

CORPUS = """\
description: a small part of the quickstart corpus
source: de
target: en
reader: quickstart
quickstart: {train: 600, valid: 60, test: 60}
subwords: {vocab_size: 300}
clean: {unit: characters, max_length: 400, duplicates: keep}
"""

# Learning rate, patience and checkpoints in mid-epoch all have a state of their own to resume.
MODEL = """\
description: Pervasive Attention, small enough for an update in a tenth of a second
user_dir: attn2d
train:
  task: pervasive_translation
  arch: pervasive_small
  encoder-embed-dim: 32
  decoder-embed-dim: 32
  convnet-channels: 32
  convnet-layers: 2
  convnet-kernel-size: 3
  resnet-ffn-dim: 32
  criterion: label_smoothed_cross_entropy
  label-smoothing: 0.1
  optimizer: adam
  lr: 0.01
  lr-scheduler: reduce_lr_on_plateau
  warmup-updates: 20
  max-tokens: 500
  max-epoch: {epochs}
  patience: 50
  save-interval-updates: 13
  log-interval: 5
  bf16: {bf16}
"""

VICTIMS = ("recipe and training", "training", "recipe")


def recipe(script: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """Start recipes/SCRIPT.sh in a session of its own; its output goes to log.txt in the working folder."""
    with open("log.txt", "ab") as log:
        process = subprocess.Popen(
            [str(ROOT / "recipes" / f"{script}.sh"), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHON": sys.executable},
        )
    atexit.register(end, process)
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def completed(script: str, *arguments: object) -> None:
    if recipe(script, *arguments).wait() != 0:
        sys.exit(f"recipes/{script}.sh failed:\n" + Path("log.txt").read_text(errors="replace")[-3000:])


def training_process(run: Run, within: float) -> int | None:
    """The process that trains into `run`, as soon as there is one."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if processes := with_standard_input(run.folder / ".lock"):
            return processes[0]
        time.sleep(0.01)
    return None


def kill(process: "subprocess.Popen[bytes]", victim: str, run: Run) -> bool:
    """Send SIGKILL; False if there was nothing to send it to."""
    if process.poll() is not None:
        return False
    if victim == "recipe and training":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "recipe":
        process.kill()
    else:
        training = training_process(run, within=60)
        if training is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(training, signal.SIGKILL)
        process.wait(60)  # the recipe ends too and says why
    # The others are not waited for: the next call meets what is still about to end.
    return True


def wait_for_training(process: "subprocess.Popen[bytes]", offset: int) -> None:
    """Wait until the recipe, whose output begins at `offset` of log.txt, says that the training itself begins."""
    while process.poll() is None:
        if re.search(rb"(?m)^(resumed from|parameters:) ", Path("log.txt").read_bytes()[offset:]):
            return
        time.sleep(0.02)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(path, tensor or plain value) of everything in a checkpoint."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from leaves(inner, f"{name}/{key}")
    else:
        yield name, value


# Times and folders, and what fairseq sets at each start.
DIFFERENT = ("/cfg/", "/extra_state/metrics/", "/extra_state/previous_training_time")


def state(path: Path) -> dict[str, Any]:
    checkpoint = checkpoints.load(path)
    del checkpoint["optimizer_history"][:-1]  # fairseq adds an entry at each start; the last says where it stands
    stored = dict(leaves(checkpoint))
    return {name: value for name, value in stored.items() if not name.startswith(DIFFERENT)}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def compare(one: Run, other: Run) -> dict[str, list[str]]:
    """What differs, by kind: files, tensors, other values, losses."""
    names = [{path.name for path in run.checkpoints.iterdir()} for run in (one, other)]
    wrong: dict[str, list[str]] = {"files": sorted(names[0] ^ names[1]), "tensors": [], "values": [], "losses": []}
    for name in sorted(names[0] & names[1]):
        first, second = state(one.checkpoints / name), state(other.checkpoints / name)
        for key in first.keys() | second.keys():
            a, b = first.get(key), second.get(key)
            if not same(a, b):
                wrong["tensors" if isinstance(a, torch.Tensor) else "values"].append(f"{name}{key}")
    expected, again = losses(one), losses(other)
    wrong["losses"] += [f"{key} stands {n} times" for key, n in Counter(k for k, _ in again).items() if n > 1]
    # fairseq reports the means of an epoch after saving: a training killed in between never reports them.
    missing = {key for key, _ in expected} - {key for key, _ in again}
    wrong["losses"] += [f"{key} is missing" for key in sorted(missing) if key[0] != "epoch"]
    known = dict(expected)
    wrong["losses"] += [f"{key}: {known.get(key)}, {value}" for key, value in again if known.get(key) != value]
    return wrong


def losses(run: Run) -> list[tuple[tuple[str, int], tuple[Any, ...]]]:
    return [((f.kind, f.updates), (f.loss, f.nll_loss, f.lr, f.gradient_norm, f.epoch)) for f in run.figures()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments and victims (default 1)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        bf16 = str(options.precision == "bf16").lower()
        Path("small.yaml").write_text(CORPUS)
        Path("tiny.yaml").write_text(MODEL.format(epochs=options.epochs, bf16=bf16))
        completed("prepare", "small.yaml")
        trained = {name: Run(Path(name) / "small/tiny") for name in ("once", "twice", "killed")}

        def call(name: str) -> list[str]:
            return ["small", "tiny.yaml", "--cpu", "--runs", name]

        seconds = []
        for name in ("once", "twice"):
            start = time.monotonic()
            completed("train", *call(name))
            seconds.append(time.monotonic() - start)
        training = max(run.figures()[-1].seconds or 0 for run in (trained["once"], trained["twice"]))
        starting = statistics.mean(seconds) - training
        print(f"{seconds[0]:.0f} s and {seconds[1]:.0f} s without interruption, {training:.0f} s of them training")

        resumed_at: list[int] = []
        print(f"{'kill':>4}  {'after':<23}  {'victim':<20} {'reported':<12} checkpoints")
        order = [VICTIMS[number % len(VICTIMS)] for number in range(options.kills)]
        draw.shuffle(order)
        for number, victim in enumerate(order, 1):
            log = Path("log.txt").stat().st_size
            process = recipe("train", *call("killed"))
            # Every other one meets the training, which must not come to its end before the last, or else the start.
            if number % 2:
                wait_for_training(process, log)
                moment = draw.uniform(0, 2 * training / options.kills)
                when = f"{moment:.2f} s of training"
            else:
                moment = draw.uniform(0.05, starting)
                when = f"{moment:.2f} s"
            time.sleep(moment)
            if not kill(process, victim, trained["killed"]):
                sys.exit(f"it ended before kill {number}; give more --epochs:\n{Path('log.txt').read_text()[-2000:]}")
            standing = trained["killed"].figures()[-1:]
            resumed_at.append(standing[0].updates if standing else 0)
            saved = len(list(trained["killed"].checkpoints.glob("*.pt")))
            print(f"{number:>4}  {when:<23}  {victim:<20} {f'update {resumed_at[-1]}':<12} {saved:>11}", flush=True)
        completed("train", *call("killed"))

        differences = {name: compare(trained["once"], trained[name]) for name in ("twice", "killed")}
        tensors = sum(
            isinstance(value, torch.Tensor)
            for path in trained["once"].checkpoints.iterdir()
            for value in state(path).values()
        )
        reported = len(losses(trained["once"]))
        count = len(list(trained["once"].checkpoints.iterdir()))
        print(f"\ncompared with the first: {tensors:,} tensors in {count} checkpoints, {reported} records of losses")
        for name, wrong in differences.items():
            counts = ", ".join(f"{len(items)} {kind}" for kind, items in wrong.items())
            print(f"{name:<7} differ: {counts}")
            for items in wrong.values():
                for item in items[:5]:
                    print(f"        {item}")
        identical = not any(items for wrong in differences.values() for items in wrong.values())
        finish(
            {
                "identical": identical,
                "kills": dict(Counter(order)),
                "tensors": tensors,
                "losses": reported,
                "updates": trained["once"].figures()[-1].updates,
                "killed_at_updates": resumed_at,
                "differences": {n: {kind: len(i) for kind, i in wrong.items()} for n, wrong in differences.items()},
                "seconds": round(time.monotonic() - begun, 1),
                "precision": options.precision,
                "seed": options.seed,
            }
        )
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
