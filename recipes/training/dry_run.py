"""The size of a planned training: parameters, batches and updates. Nothing is trained."""

from dataclasses import dataclass
from typing import Any

from recipes.console import messages
from recipes.training import fairseq_config
from recipes.training.plan import Plan
from thoth_core.errors import UserError


@dataclass(frozen=True)
class Size:
    """The model's parameters, the batches of an epoch, and the updates until max-update or max-epoch if there is one.

    `batches` are those of all processes together, which hold `sentences` sentences.
    """

    parameters: int
    sentences: int
    batches: int
    batches_per_update: int
    updates: int | None
    epochs: float | None

    def describe(self) -> str:
        """The size for people, in three lines."""
        epochs = "" if self.epochs is None else f" ({self.epochs:,.1f} epochs)"
        updates = "until another limit" if self.updates is None else f"{self.updates:,}"
        return (
            f"parameters: {self.parameters:,}\n"
            f"batches: {self.batches:,} per epoch, of {self.sentences / self.batches:.1f} sentences on average; "
            f"{self.batches_per_update} per update\n"
            f"updates: {updates}{epochs}"
        )


def size(plan: Plan) -> Size:
    """Build the model and the batches of the first epoch, and count.

    Raises:
        UserError: the model cannot be built, or no sentence fits.
    """
    cfg, task, model = fairseq_config.build(plan.arguments())
    with messages.quiet_libraries():
        task.load_dataset("train")
        batches = _batches(cfg, task, model)
    batches_per_update = _update_freq(cfg) * plan.devices.all_processes
    updates_per_epoch = -(-len(batches) // batches_per_update)
    ends = [int(plan.limits["max-update"])] if "max-update" in plan.limits else []
    if "max-epoch" in plan.limits:
        ends.append(int(plan.limits["max-epoch"]) * updates_per_epoch)
    updates = min(ends, default=None)
    return Size(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sentences=sum(map(len, batches)),
        batches=len(batches),
        batches_per_update=batches_per_update,
        updates=updates,
        epochs=None if updates is None else updates / updates_per_epoch,
    )


def _batches(cfg: Any, task: Any, model: Any) -> list[Any]:
    """The batches of the training set in the first epoch, as numbers of sentences."""
    from fairseq.utils import resolve_max_positions

    batches = list(
        task.get_batch_iterator(
            dataset=task.dataset("train"),
            max_tokens=cfg.dataset.max_tokens,
            max_sentences=cfg.dataset.batch_size,
            max_positions=resolve_max_positions(task.max_positions(), model.max_positions(), cfg.dataset.max_tokens),
            ignore_invalid_inputs=True,
            required_batch_size_multiple=cfg.dataset.required_batch_size_multiple,
            seed=cfg.common.seed,
        ).frozen_batches
    )
    if not batches:
        raise UserError(
            "no training sentence fits: all are longer than max-tokens, max-source-positions or max-target-positions; "
            "raise them"
        )
    return batches


def _update_freq(cfg: Any) -> int:
    """Batches of a process per update in the first epoch: fairseq has a list, one number per epoch."""
    update_freq = cfg.optimization.update_freq
    return int(update_freq[0] if hasattr(update_freq, "__getitem__") else update_freq)
