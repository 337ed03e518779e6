"""Reports of a training's progress as events, in place of fairseq's progress bar.

fairseq has no hook for a program that follows a training, so functions that it looks up by name are replaced while it
trains: the factory of progress bars, `load_checkpoint` (called once, with the finished trainer) and
`validate_and_save` (called after each update; it decides on the end).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.logging import progress_bar
from fairseq.logging.progress_bar import BaseProgressBar
from fairseq_cli import train

from fairseq_compat import events, patching

# fairseq's figures that have a name of ours.
NAMES = {
    "loss": "loss",
    "nll_loss": "nll_loss",
    "ppl": "perplexity",
    "lr": "lr",
    "gnorm": "gradient_norm",
    "wps": "tokens_per_second",
    "num_updates": "updates",
    "bleu": "bleu",
}
# fairseq's figures that are not reported. All others are the criterion's or the model's.
OMITTED = {"ups", "wpb", "bsz", "clip", "train_wall", "wall", "loss_scale", "best_loss", "best_bleu", "sample_size"}


def train_and_report(cfg: Any) -> None:
    """Train as fairseq's `main(cfg)`, and report progress and the end to the file that the environment names."""
    reporter = Reporter(cfg)
    try:
        with reporter.attached():
            train.main(cfg)
    except KeyboardInterrupt:
        reporter.end("interrupted")
        raise
    reporter.end(reporter.reason())


class Reporter:
    """Follows one training and reports its events."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.trainer: Any = None
        self.epoch_iterator: Any = None
        self.limit: str | None = None  # the limit that `validate_and_save` found to be reached

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Replace fairseq's functions within the block."""
        with (
            patching.replaced(progress_bar, "progress_bar", self._progress_bar(progress_bar.progress_bar)),
            patching.replaced(checkpoint_utils, "load_checkpoint", self._load(checkpoint_utils.load_checkpoint)),
            patching.replaced(train, "validate_and_save", self._validate_and_save(train.validate_and_save)),
        ):
            yield

    def figures(self, kind: str, stats: Mapping[str, Any], **more: Any) -> None:
        """Report fairseq's figures `stats` of a log interval, an epoch or a validation."""
        seconds = round(float(self.trainer.cumulative_training_time()), 3)  # a tensor with several processes
        event: dict[str, Any] = {"kind": kind, "seconds": seconds, "updates": self.trainer.get_num_updates(), **more}
        for name, figure in stats.items():
            value = as_number(figure)
            if value is not None and name not in OMITTED:
                event[NAMES.get(name, name)] = int(value) if name == "num_updates" else value
        events.report(events.Figures(**event))

    def end(self, reason: str) -> None:
        """Report the end of the training."""
        updates = self.trainer.get_num_updates() if self.trainer is not None else 0
        events.report(events.Ended.model_validate({"kind": "ended", "reason": reason, "updates": updates}))

    def reason(self) -> str:
        """Why fairseq's loop over epochs has ended."""
        if self.limit is not None:
            return self.limit
        beyond = self.epoch_iterator.next_epoch_idx > (self.cfg.optimization.max_epoch or math.inf)
        return "max-epoch" if beyond else "minimum-lr"

    def _progress_bar(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def make_reporting(iterator: Any, *, log_format: Any = None, epoch: int | None = None, **options: Any) -> Any:
            bar = make(iterator, log_format="none", epoch=epoch, **options)
            return ReportingBar(iterator, bar, self, epoch)

        return make_reporting

    def _load(self, load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def load_and_report(cfg: Any, trainer: Any, **options: Any) -> Any:
            self.trainer = trainer
            count = sum(p.numel() for p in trainer.get_model().parameters() if not getattr(p, "expert", False))
            events.report(events.Parameters(kind="parameters", count=count))
            trainer.load_checkpoint = self._report_loading(trainer.load_checkpoint)
            trainer.save_checkpoint = self._report_saving(trainer.save_checkpoint)
            extra_state, self.epoch_iterator = load_checkpoint(cfg, trainer, **options)
            return extra_state, self.epoch_iterator

        return load_and_report

    def _report_loading(self, load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def load_and_report(filename: str, *arguments: Any, **options: Any) -> Any:
            extra_state = load_checkpoint(filename, *arguments, **options)
            if extra_state is not None:
                name, updates = Path(filename).name, self.trainer.get_num_updates()
                if updates:
                    epoch = extra_state["train_iterator"]["epoch"]
                    events.report(events.Resumed(kind="resumed", checkpoint=name, epoch=epoch, updates=updates))
                else:
                    events.report(events.Initialised(kind="initialised", checkpoint=name))
            return extra_state

        return load_and_report

    def _report_saving(self, save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def save_and_report(filename: str, extra_state: Any) -> Any:
            path = save_checkpoint(filename, extra_state)
            updates = self.trainer.get_num_updates()
            events.report(events.Saved(kind="saved", checkpoint=Path(filename).name, updates=updates))
            return path

        return save_and_report

    def _validate_and_save(self, validate_and_save: Callable[..., Any]) -> Callable[..., Any]:
        def validate_save_and_note_limit(cfg: Any, trainer: Any, task: Any, epoch_iterator: Any, *rest: Any) -> Any:
            self.epoch_iterator = epoch_iterator
            losses, should_stop = validate_and_save(cfg, trainer, task, epoch_iterator, *rest)
            if should_stop:
                self.limit = self._reached_limit()
            return losses, should_stop

        return validate_save_and_note_limit

    def _reached_limit(self) -> str:
        if self.trainer.get_num_updates() >= (self.cfg.optimization.max_update or math.inf):
            return "max-update"
        patience = self.cfg.checkpoint.patience
        if 0 < patience <= getattr(train.should_stop_early, "num_runs", 0):
            return "patience"
        return "minutes"


class ReportingBar(BaseProgressBar):
    """A progress bar that reports figures as events, around one of fairseq's that prints nothing itself.

    The inner one may still send them to TensorBoard or the like.
    """

    def __init__(self, iterator: Any, bar: Any, reporter: Reporter, epoch: int | None) -> None:
        super().__init__(iterator, epoch)
        self.bar = bar
        self.reporter = reporter
        self.batch = self.size = 0

    def __iter__(self) -> Iterator[Any]:
        self.size = len(self.iterable)
        for number, samples in enumerate(self.bar, start=self.n + 1):
            self.batch = number
            yield samples

    def log(self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Report the figures of a log interval."""
        position = round((self.epoch or 1) - 1 + self.batch / self.size, 3)
        self.reporter.figures("train", stats, epoch=self.epoch, epochs=position)
        self.bar.log(stats, tag=tag, step=step)

    def print(self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Report the averages of an epoch, or the figures of a validation on the first validation set."""
        if tag == "train":
            self.reporter.figures("epoch", stats, epoch=self.epoch)
        elif tag == self.reporter.cfg.dataset.valid_subset.split(",")[0]:
            self.reporter.figures("valid", stats, epoch=self.epoch)
        self.bar.print(stats, tag=tag, step=step)

    def update_config(self, config: Any) -> None:
        """Pass fairseq's configuration on."""
        self.bar.update_config(config)


def as_number(figure: Any) -> float | None:
    """`figure` as a number; None for what is not one."""
    try:
        return float(figure)
    except (TypeError, ValueError):
        return None
