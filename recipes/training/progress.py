"""The figures of one run over its resumptions: where it stands, and lines for people."""

import math
from collections.abc import Mapping
from typing import Any

from fairseq_compat.events import Figures
from recipes.training.run import Run


class Progress:
    """Collects the figures that a training reports."""

    def __init__(self, run: Run, limits: Mapping[str, Any]):
        self.limits = limits
        self.figures = run.figures()

    def rewind(self, updates: int) -> None:
        """Forget the figures after that update: the training resumes from a checkpoint of it."""
        self.figures = [figures for figures in self.figures if figures.updates <= updates]

    def add(self, figures: Figures) -> str:
        """Keep the figures; returns the line for people about them."""
        self.figures.append(figures)
        return self.describe(figures)

    @property
    def latest(self) -> Figures | None:
        """The latest figures; None before the first."""
        return self.figures[-1] if self.figures else None

    def best_validation(self) -> Figures | None:
        """The validation with the lowest loss, the first of equals. A loss that is not finite is not the best."""
        best: Figures | None = None
        for figures in self.figures:
            loss = figures.loss if figures.kind == "valid" else None
            if loss is not None and math.isfinite(loss) and (best is None or loss < _loss(best)):
                best = figures
        return best

    def state(self) -> dict[str, Any]:
        """Where the training stands, as fields of run.json."""
        now, best = self.latest, self.best_validation()
        return {
            "epoch": now and now.epoch,
            "updates": now and now.updates,
            "seconds": now and now.seconds,
            "best_valid_loss": best and best.loss,
            "best_updates": best and best.updates,
        }

    def summary(self) -> str:
        """`1,200 updates in 12:34, best valid loss 3.456 at update 1,100.`"""
        now, best = self.latest, self.best_validation()
        text = f"{now.updates if now else 0:,} updates in {clock(now.seconds or 0 if now else 0)}"
        if best is not None:
            text += f", best valid loss {best.loss:.3f} at update {best.updates:,}"
        return text + "."

    def describe(self, figures: Figures) -> str:
        """A line such as `epoch 3  update 1,200  loss 4.21  12,345 tokens/s  3:12 elapsed  41:48 left`."""
        parts = [f"epoch {figures.epoch}", f"update {figures.updates:,}"]
        parts += self._validation(figures) if figures.kind == "valid" else self._training(figures)
        parts.append(f"{clock(figures.seconds or 0)} elapsed")
        if figures.kind == "train" and (left := remaining(figures, self.limits)) is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)

    def _validation(self, figures: Figures) -> list[str]:
        parts = [f"valid loss {_loss(figures):.3f}"]
        if figures.perplexity is not None:
            parts.append(f"perplexity {figures.perplexity:.2f}")
        if figures.bleu is not None:
            parts.append(f"validation BLEU {figures.bleu:.2f}")
        more = figures.model_extra or {}
        if accuracies := [more[name] for n in range(1, 100) if (name := f"accuracy_{n}") in more]:
            parts.append("accuracy by exit " + " ".join(f"{accuracy:.1f}" for accuracy in accuracies))
        if (best := self.best_validation()) is not None:
            parts.append("(best so far)" if best is figures else f"(best {best.loss:.3f})")
        return parts

    def _training(self, figures: Figures) -> list[str]:
        parts = [f"{'mean ' if figures.kind == 'epoch' else ''}loss {_loss(figures):.3f}"]
        validations = [earlier for earlier in self.figures if earlier.kind == "valid"]
        if validations and figures.kind == "train":
            parts.append(f"valid {_loss(validations[-1]):.3f}")
        if figures.tokens_per_second is not None:
            parts.append(f"{figures.tokens_per_second:,.0f} tokens/s")
        return parts


def _loss(figures: Figures) -> float:
    return math.nan if figures.loss is None else figures.loss


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def remaining(figures: Figures, limits: Mapping[str, Any]) -> float | None:
    """Seconds until the first limit is reached at the present speed; None where no limit allows an estimate."""
    seconds, updates = figures.seconds, figures.updates
    if not seconds or not updates:
        return None
    left = []
    if limits.get("minutes"):
        left.append(float(limits["minutes"]) * 60 - seconds)
    if limits.get("max-update"):
        left.append((float(limits["max-update"]) - updates) * seconds / updates)
    if limits.get("max-epoch") and figures.epochs:
        left.append((float(limits["max-epoch"]) - figures.epochs) * seconds / figures.epochs)
    return max(0.0, min(left)) if left else None
