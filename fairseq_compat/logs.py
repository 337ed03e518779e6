"""Quiet logs: known noise of fairseq and its libraries is left out; progress and useful warnings stay."""

import logging
import re
import warnings

# Warnings about fairseq's calls of Hydra and torch; the user can do nothing about them.
WARNINGS = (
    r"hydra\.experimental\.",
    r"\s*The version_base parameter is not specified",
    r"In '.*': Usage of deprecated keyword in package header",
    r"\s*'config' is validated against ConfigStore schema",
    r"\s*The strict flag in the compose API is deprecated",
    r"'pin_memory' argument is set as true but no accelerator is found",
    r"`torch\.cuda\.amp\.autocast\(args\.\.\.\)` is deprecated",
    r"Support for mismatched key_padding_mask and attn_mask is deprecated",
)

# Log lines (logger, beginning of the message) without information: inner steps, and features that are not used.
MESSAGES = (
    ("fairseq.tasks.text_to_speech", "Please install tensorboardX"),
    ("fairseq_cli.train", "{'_name': None, 'common': "),  # all options, 10 KB; every checkpoint holds them
    ("fairseq_cli.train", "num. expert model params: 0 "),
    ("fairseq_cli.train", "Start iterating over samples"),
    ("fairseq_cli.train", "begin dry-run validation"),
    ("fairseq.trainer", "Preparing to load checkpoint"),
    ("fairseq.trainer", "begin training epoch"),
    ("fairseq.trainer", "Saving checkpoint to"),
    ("fairseq.trainer", "Finished saving checkpoint to"),
    ("fairseq.checkpoint_utils", "Preparing to save checkpoint"),
    ("fairseq.tasks.fairseq_task", "can_reuse_epoch_itr"),
    ("fairseq.tasks.fairseq_task", "reuse_dataloader"),
    ("fairseq.tasks.fairseq_task", "rebuild_batches"),
    ("fairseq.tasks.fairseq_task", "creating new batches for epoch"),
)

_pattern = re.compile("|".join(f"{re.escape(name)}:{re.escape(start)}" for name, start in MESSAGES))


def is_noise(record: logging.LogRecord) -> bool:
    """Whether a log record is one of MESSAGES."""
    return record.levelno <= logging.INFO and _pattern.match(f"{record.name}:{record.getMessage()}") is not None


def quiet() -> None:
    """Leave the noise out. Call it before fairseq is imported, and again after fairseq has set up its logging."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for handler in logging.getLogger().handlers:
        if _drop_noise not in handler.filters:
            handler.addFilter(_drop_noise)


def _drop_noise(record: logging.LogRecord) -> bool:
    return not is_noise(record)
