"""Resuming a training exactly, and from the newest readable checkpoint.

Faults of fairseq that are fixed here:

- A start fails on a truncated `checkpoint_last.pt` although other checkpoints of the folder are readable. Without one
  (the first save was interrupted) it begins from scratch and overwrites them.
- The count of validations without improvement (`--patience`) restarts at 0.
- Under --bf16 and --fp16 the optimizer updates float32 parameters, but only their rounded copies are saved, so a
  resumed training takes another course. The state of --fp16's loss scale is not complete either.
- A checkpoint at the end of an epoch is written before the learning rate's scheduler sees the validation loss, and a
  resumed scheduler never sees it. `reduce_lr_on_plateau` does not save its count of validations without improvement.
- A training that resumes at the end of an epoch reports a mean loss over a part of its first log interval only.
- `--finetune-from-model` takes over the training time of that model, and `--stop-time-hours` counts it.

Resuming in mid-epoch is exact with `--update-epoch-batch-itr True` only, which is `fairseq_compat.train`'s default.
"""

import copy
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fairseq_compat import checkpoints, patching
from fairseq_compat.checkpoints import CheckpointError

logger = logging.getLogger(__name__)


def install() -> None:
    """Wrap fairseq's `load_checkpoint`, `Trainer.save_checkpoint`, and the states of optimizer and scheduler."""
    from fairseq import checkpoint_utils
    from fairseq.optim.fp16_optimizer import FP16Optimizer
    from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule as Plateau
    from fairseq.trainer import Trainer

    patching.replace(checkpoint_utils, "load_checkpoint", _load_checkpoint)
    patching.replace(Trainer, "save_checkpoint", _save_checkpoint)
    patching.replace(FP16Optimizer, "state_dict", _state_dict)
    patching.replace(FP16Optimizer, "load_state_dict", _load_state_dict)
    patching.replace(Plateau, "state_dict", _plateau_state_dict)
    patching.replace(Plateau, "load_state_dict", _load_plateau_state_dict)
    patching.replace(Plateau, "step", _step_plateau)


def readable_checkpoint(folder: Path, name: str) -> Path:
    """Return folder/name, or the newest readable checkpoint of `folder` (with a warning) if that one is damaged.

    Raises CheckpointError if none is readable.
    """
    try:
        checkpoints.read(folder / name, lazily=True)
        return folder / name
    except CheckpointError as error:
        newest = checkpoints.newest_readable(folder)
        if newest is None:
            others = ", ".join(sorted(path.name for path in folder.glob("checkpoint*.pt")))
            raise CheckpointError(
                f"none of the checkpoints in {folder} is readable ({others}); "
                "remove them to train from the beginning, or restore them from a copy"
            ) from error
        logger.warning("%s: resuming from the newest readable one, %s", error, newest)
        return newest


def _load_checkpoint(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def load_newest_readable(cfg: Any, trainer: Any, **iterator_options: Any) -> Any:
        folder, name = Path(cfg.save_dir), f"checkpoint_last{trainer.checkpoint_suffix}.pt"
        if cfg.restore_file == "checkpoint_last.pt":
            path = readable_checkpoint(folder, name) if (folder / name).exists() else _without_last(cfg, trainer)
            if path is not None and path.name != name:
                cfg = copy.copy(cfg)
                cfg.restore_file = str(path)
                cfg.finetune_from_model = None  # it is for the first start only
        extra_state, epoch_iterator = load_checkpoint(cfg, trainer, **iterator_options)
        if trainer.get_num_updates() == 0:  # --finetune-from-model: the state is another training's
            extra_state = None
            trainer._previous_training_time = 0
        _restore_early_stopping(extra_state)
        if not cfg.reset_lr_scheduler:
            _update_scheduler(trainer, extra_state, epoch_iterator)
        if not cfg.reset_meters:
            _restore_interval(extra_state)
        return extra_state, epoch_iterator

    return load_newest_readable


def _without_last(cfg: Any, trainer: Any) -> Path | None:
    """The newest checkpoint of a training whose first save was interrupted, or whose checkpoint_last.pt is gone."""
    wanted_elsewhere = cfg.finetune_from_model or getattr(cfg, "continue_once", None)
    if cfg.no_last_checkpoints or wanted_elsewhere or trainer.checkpoint_suffix:
        return None
    newest = checkpoints.newest_readable(cfg.save_dir)
    if newest is not None:
        logger.warning("%s has no checkpoint_last.pt: resuming from the newest readable one, %s", cfg.save_dir, newest)
    return newest


def _update_scheduler(trainer: Any, extra_state: dict[str, Any] | None, epoch_iterator: Any) -> None:
    """Do what `fairseq_cli.train` does at the end of an epoch after saving, if the training resumes there."""
    position = (extra_state or {}).get("train_iterator", {})
    next_epoch = position.get("epoch", 1)
    if next_epoch > 1 and not position.get("iterations_in_epoch") and epoch_iterator.next_epoch_idx == next_epoch:
        trainer.lr_step(next_epoch - 1, (extra_state or {}).get("val_loss"))


def _restore_interval(extra_state: dict[str, Any] | None) -> None:
    """Restore the means of the current log interval, which fairseq resets with those of the epoch that has ended."""
    from fairseq.logging import metrics

    interval = (extra_state or {}).get("metrics", {}).get("train_inner")
    if interval is not None:
        metrics.load_state_dict({"train_inner": interval})


def _save_checkpoint(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def save_with_early_stopping(self: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        return save_checkpoint(self, filename, {**extra_state, "early_stopping": dict(_early_stopping())})

    return save_with_early_stopping


def _restore_early_stopping(extra_state: dict[str, Any] | None) -> None:
    state = _early_stopping()
    state.clear()
    state.update((extra_state or {}).get("early_stopping", {}))


def _early_stopping() -> dict[str, Any]:
    """The attributes in which `fairseq_cli.train.should_stop_early` keeps its state; empty if nothing is trained."""
    for module in ("__main__", "fairseq_cli.train"):  # the former when started by `python -m fairseq_cli.train`
        function = getattr(sys.modules.get(module), "should_stop_early", None)
        if function is not None:
            return vars(function)
    return {}


# The parts of the loss scaler's state that change while it runs.
SCALER_STATE = ("loss_scale", "_iter", "_last_overflow_iter", "_last_rescale_iter", "_overflows_since_rescale")


def _state_dict(state_dict: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def with_float32_parameters(self: Any) -> dict[str, Any]:
        state = state_dict(self)
        state["float32_parameters"] = [value.detach().clone() for value in _float32_parameters(self)]
        if self.scaler is not None:
            state["loss_scaler"] = {name: getattr(self.scaler, name) for name in SCALER_STATE}
        return state

    return with_float32_parameters


def _load_state_dict(load_state_dict: Callable[..., None]) -> Callable[..., None]:
    def with_float32_parameters(
        self: Any, state: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        # Checkpoints of fairseq without our patches do not have these.
        saved = state.get("float32_parameters", [])
        scaler = state.get("loss_scaler", {})
        load_state_dict(self, {k: v for k, v in state.items() if k != "float32_parameters"}, optimizer_overrides)
        current = _float32_parameters(self)
        if [value.shape for value in saved] == [value.shape for value in current]:
            with torch.no_grad():
                for parameter, value in zip(current, saved, strict=True):
                    parameter.copy_(value)
        if self.scaler is not None:
            for name, value in scaler.items():
                setattr(self.scaler, name, value)

    return with_float32_parameters


def _float32_parameters(optimizer: Any) -> list[torch.Tensor]:
    """The optimizer's own parameters: a list, or flattened ones by device."""
    parameters = optimizer.fp32_params
    return list(parameters.values()) if isinstance(parameters, dict) else list(parameters)


# The parts of ReduceLROnPlateau's state that change and that fairseq leaves out.
PLATEAU_STATE = ("num_bad_epochs", "cooldown_counter")


def _plateau_state_dict(state_dict: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def complete(self: Any) -> dict[str, Any]:
        return state_dict(self) | {name: getattr(self.lr_scheduler, name) for name in PLATEAU_STATE}

    return complete


def _load_plateau_state_dict(load_state_dict: Callable[..., None]) -> Callable[..., None]:
    def complete(self: Any, state: dict[str, Any]) -> None:
        load_state_dict(self, state)
        for name in PLATEAU_STATE:
            if name in state:
                setattr(self.lr_scheduler, name, state[name])

    return complete


def _step_plateau(step: Callable[..., float]) -> Callable[..., float]:
    def only_after_validation(self: Any, epoch: int, val_loss: float | None = None) -> float:
        # fairseq also calls it without a loss at each start, which is not the end of an epoch.
        return step(self, epoch, val_loss) if val_loss is not None else self.optimizer.get_lr()

    return only_after_validation
