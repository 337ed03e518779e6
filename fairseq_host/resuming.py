"""Resuming a training exactly, and from the newest readable checkpoint.

fairseq's faults that are mended here:

- a start fails on a truncated `checkpoint_last.pt` although other checkpoints of the folder are readable;
- the count of validations without improvement (`--patience`) begins anew at each start;
- under --bf16 and --fp16 the parameters that the optimizer updates are float32, but only their rounded copies
  are saved, so a resumed training goes another way; nor is the state of --fp16's loss scale complete.

Resuming in mid-epoch is exact with `--update-epoch-batch-itr True` only, which is `fairseq_host.train`'s default.
"""

import copy
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fairseq_host import checkpoints
from fairseq_host.checkpoints import CheckpointError

logger = logging.getLogger(__name__)


def install() -> None:
    """Wrap fairseq's `load_checkpoint`, `Trainer.save_checkpoint` and the state of its mixed-precision optimizer."""
    from fairseq import checkpoint_utils
    from fairseq.optim.fp16_optimizer import FP16Optimizer
    from fairseq.trainer import Trainer

    checkpoint_utils.load_checkpoint = _load_checkpoint(checkpoint_utils.load_checkpoint)
    Trainer.save_checkpoint = _save_checkpoint(Trainer.save_checkpoint)
    FP16Optimizer.state_dict = _state_dict(FP16Optimizer.state_dict)
    FP16Optimizer.load_state_dict = _load_state_dict(FP16Optimizer.load_state_dict)


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
        if cfg.restore_file == "checkpoint_last.pt" and (folder / name).exists():
            path = readable_checkpoint(folder, name)
            if path.name != name:
                cfg = copy.copy(cfg)
                cfg.restore_file = str(path)
                cfg.finetune_from_model = None  # it served the first start only
        extra_state, epoch_iterator = load_checkpoint(cfg, trainer, **iterator_options)
        _restore_early_stopping(extra_state)
        return extra_state, epoch_iterator

    return load_newest_readable


def _save_checkpoint(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def save_with_early_stopping(self: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        return save_checkpoint(self, filename, {**extra_state, "early_stopping": dict(_early_stopping())})

    return save_with_early_stopping


def _restore_early_stopping(extra_state: dict[str, Any] | None) -> None:
    state = _early_stopping()
    state.clear()
    state.update((extra_state or {}).get("early_stopping", {}))


def _early_stopping() -> dict[str, Any]:
    """The attributes that `fairseq_cli.train.should_stop_early` keeps its state in; empty if nothing is trained."""
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
        # Checkpoints of an unmended fairseq do not have these.
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
