"""What fairseq logs, as records for progress.jsonl and as lines for people."""

import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from recipes.storage.disk import write_atomically
from recipes.training.run import Run

Record = dict[str, Any]

# fairseq logs JSON statistics under the name of their kind: `date | level | kind | {...}`, `level:kind:{...}`
# where logging was set up before fairseq could.
_STATISTICS = re.compile(r"(?:\| |:)(?P<kind>train_inner|train|valid)(?: \| |:)(?P<json>\{.*\})\s*$")
# What fairseq logs of itself; all else is the criterion's or the model's, such as the accuracy of each exit.
_HOSTS = {"epoch", "update", "loss", "nll_loss", "ppl", "lr", "gnorm", "wps", "num_updates", "wall", "bleu", "ups",
          "wpb", "bsz", "clip", "train_wall", "loss_scale", "gb_free", "best_loss", "sample_size"}  # fmt: skip
_PARAMETERS = re.compile(r"num\. shared model params: ([\d,]+)")


def number(value: Any) -> float | None:
    """fairseq writes averages as strings; None for what is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def parse(line: str) -> Record | None:
    """The record in a log line, or None.

    Kinds: `train` (a log interval), `epoch` (averages of an epoch), `valid`. Losses are in bits a sub-word,
    `seconds` is training time over all resumptions, `tokens_per_second` counts target sub-words. Figures that are not
    fairseq's own stand under the names they were logged by.
    """
    found = _STATISTICS.search(line)
    if not found:
        return None
    try:
        values: Mapping[str, Any] = json.loads(found["json"])
    except ValueError:
        return None
    kind = {"train_inner": "train", "train": "epoch", "valid": "valid"}[found["kind"]]
    prefix = {"train": "", "epoch": "train_", "valid": "valid_"}[kind]
    names = {
        "loss": "loss",
        "nll_loss": "nll_loss",
        "ppl": "perplexity",
        "lr": "lr",
        "gnorm": "gradient_norm",
        "wps": "tokens_per_second",
        "num_updates": "updates",
        "wall": "seconds",
        "bleu": "bleu",
    }
    record: Record = {"kind": kind, "epoch": values.get("epoch")}
    for theirs, ours in names.items():
        value = number(values.get(prefix + theirs))
        if value is not None:
            record[ours] = int(value) if ours == "updates" else value
    for name, logged in values.items():
        theirs = name.removeprefix(prefix)
        if name.startswith(prefix) and theirs not in _HOSTS and (value := number(logged)) is not None:
            record[theirs] = value
    if kind == "train" and (position := number(values.get("update"))) is not None:
        record["epochs"] = position
    if "updates" not in record:
        return None
    return record


def parse_parameters(line: str) -> int | None:
    """The number of parameters, when this line says it."""
    found = _PARAMETERS.search(line)
    return int(found[1].replace(",", "")) if found else None


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def remaining(record: Record, limits: Mapping[str, Any]) -> float | None:
    """Seconds until the first limit is met at the present speed; None when no limit tells."""
    seconds, updates = record.get("seconds"), record.get("updates")
    if not seconds or not updates:
        return None
    left = []
    if limits.get("minutes"):
        left.append(float(limits["minutes"]) * 60 - seconds)
    if limits.get("max-update"):
        left.append((float(limits["max-update"]) - updates) * seconds / updates)
    if limits.get("max-epoch") and record.get("epochs"):
        left.append((float(limits["max-epoch"]) - record["epochs"]) * seconds / record["epochs"])
    return max(0.0, min(left)) if left else None


class Progress:
    """Collects the records of one run over its resumptions."""

    def __init__(self, run: Run, limits: Mapping[str, Any]):
        self.run = run
        self.limits = limits
        self.records = run.progress()
        self._earlier = 0.0  # seconds of training before this resumption; fairseq's clock starts at 0 each time
        self._since: float | None = None  # when this resumption began to train, by the clock of time.monotonic()

    def begin(self) -> None:
        """Training begins now. A validation, which may be told first, does not say how long ago that was."""
        if self._since is None:
            self._since = time.monotonic()

    def rewind(self, updates: int) -> None:
        """A checkpoint of so many updates was loaded: forget what a killed training had told beyond it."""
        self.records = [r for r in self.records if r.get("updates", 0) <= updates]
        self._earlier = max((r.get("seconds", 0.0) for r in self.records), default=0.0)
        write_atomically(self.run.progress_path, "".join(json.dumps(r) + "\n" for r in self.records))

    def add(self, record: Record) -> str:
        """Keep `record` in progress.jsonl; the line for people about it."""
        if self._since is None:
            self._since = time.monotonic() - record.get("seconds", 0.0)  # fairseq rounds its own to whole seconds
        record["seconds"] = round(self._earlier + time.monotonic() - self._since, 1)
        self.records.append(record)
        with open(self.run.progress_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return self.describe(record)

    @property
    def latest(self) -> Record:
        """The latest record; empty before the first."""
        return self.records[-1] if self.records else {}

    def best_validation(self) -> Record | None:
        """The validation with the lowest loss (the first one of equals); none of a loss that is not finite."""
        valid = [r for r in self.records if r["kind"] == "valid" and math.isfinite(r.get("loss", math.nan))]
        return min(valid, key=lambda r: r["loss"], default=None)

    def standing(self) -> Record:
        """Where the training stands, for run.json."""
        now, best = self.latest, self.best_validation()
        return {
            "epoch": now.get("epoch"),
            "updates": now.get("updates"),
            "seconds": now.get("seconds"),
            "best_valid_loss": best["loss"] if best else None,
            "best_updates": best["updates"] if best else None,
        }

    def summary(self) -> str:
        """`1,200 updates in 12:34, best valid loss 3.456 at update 1,100.`"""
        told = f"{self.latest.get('updates', 0):,} updates in {clock(self.latest.get('seconds', 0))}"
        if (best := self.best_validation()) is not None:
            told += f", best valid loss {best['loss']:.3f} at update {best['updates']:,}"
        return told + "."

    def describe(self, record: Record) -> str:
        """A line such as `epoch 3  update 1,200  loss 4.21  12,345 tokens/s  3:12 elapsed  41:48 left`."""
        parts = [f"epoch {record['epoch']}", f"update {record['updates']:,}"]
        if record["kind"] == "valid":
            parts.append(f"valid loss {record.get('loss', math.nan):.3f}")
            if "perplexity" in record:
                parts.append(f"perplexity {record['perplexity']:.2f}")
            if "bleu" in record:
                parts.append(f"validation BLEU {record['bleu']:.2f}")
            if accuracies := [record[name] for n in range(1, 100) if (name := f"accuracy_{n}") in record]:
                parts.append("accuracy by exit " + " ".join(f"{accuracy:.1f}" for accuracy in accuracies))
            best = self.best_validation()
            parts.append("(best so far)" if best is record else f"(best {best['loss']:.3f})" if best else "")
        else:
            parts.append(f"{'mean ' if record['kind'] == 'epoch' else ''}loss {record.get('loss', math.nan):.3f}")
            valid = [r for r in self.records if r["kind"] == "valid"]
            if valid and record["kind"] == "train":
                parts.append(f"valid {valid[-1].get('loss', math.nan):.3f}")
        if "tokens_per_second" in record and record["kind"] != "valid":
            parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"{clock(record['seconds'])} elapsed")
        if record["kind"] == "train" and (left := remaining(record, self.limits)) is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join(part for part in parts if part)
