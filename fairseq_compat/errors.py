"""Errors for users: one line that names the cause and the remedy."""

import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn

from fairseq_compat import events
from thoth_core.errors import Terminated, UserError


def main(function: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `function` and exit.

    The status is what it returns (None: 0), 1 after a `UserError`, 130 after Ctrl-C, 143 after a `Terminated`. Errors
    of fairseq and torch that `explain` knows count as `UserError`; others keep their traceback.
    """
    try:
        status = function()
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        refuse(str(known))
    sys.exit(status or 0)


def refuse(message: str, status: int = 1) -> NoReturn:
    """Print `error: message`, report it to who reads this process's events, and exit."""
    print(f"error: {message}", file=sys.stderr)
    events.report(events.Error(kind="error", message=message))
    sys.exit(status)


def install_hook() -> None:
    """Let a `UserError` that nobody handles end the process with one line. All else goes to the previous hook.

    fairseq's own commands need it: there, our models and tasks raise their errors outside of `main`.
    """
    previous = sys.excepthook
    if getattr(previous, _OURS, False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    setattr(hook, _OURS, True)
    sys.excepthook = hook


_OURS = "_fairseq_compat_hook"


# The failure of one process of a training is the consequence of another's.
ANOTHER_PROCESS = (
    "another process of this training ended or cannot be reached (its own message may say why); "
    "start the same command again, which resumes"
)

# Errors of fairseq and torch by their messages, and what to say instead; groups of the pattern fill the text.
KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"cannot mmap an empty file|Index file doesn't match expected format",
        "a file of the binarised data is empty or damaged; prepare the data again",
    ),
    (
        r"offset must be non-negative and no greater than buffer length",
        "a .bin file of the binarised data is truncated; prepare the data again",
    ),
    (
        r"Dataset not found: (\S+) \((.*)\)",
        "{2} has no split {1} for these languages; prepare the data again, or check --source-lang and --target-lang",
    ),
    (
        r"No such file or directory: '(.*dict\.\w+\.txt)'",
        "dictionary {1} is missing; prepare the data again, or check --source-lang and --target-lang",
    ),
    (r"No such file or directory: '(.+)'", "{1} does not exist; check the path"),
    (
        r"Incorrect dictionary format",
        "a dictionary (dict.*.txt) is truncated or damaged; prepare the data again",
    ),
    (
        r"Sentences lengths should not exceed max_tokens=(\d+)",
        "--max-tokens {1} is less than the longest sentence; raise it",
    ),
    (
        r"Must specify batch size either with --max-tokens or --batch-size",
        "no batch size: give --max-tokens or --batch-size",
    ),
    (
        r"Could not infer language pair",
        "no binarised text in the data folder; give the folder that fairseq-preprocess wrote",
    ),
    (
        r"Error merging override lr_scheduler\.total_num_update=null",
        "--lr-scheduler polynomial_decay needs --total-num-update, the update at which the rate has fallen to its end",
    ),
    (r"Model file not found: (.+)", "checkpoint {1} does not exist; check --path, or train first"),
    (
        r"Cannot load model parameters from checkpoint (.+?); please",
        "checkpoint {1} does not fit the model: give the options that it was trained with, or another --save-dir",
    ),
    (
        r"Criterion does not match; please reset the optimizer|Optimizer does not match; please reset the optimizer",
        "the checkpoint was trained with another --criterion or optimizer; give the same, or --reset-optimizer",
    ),
    (
        r"gradients are Nan/Inf",
        "the training diverged (gradients are not finite); lower --lr, or set --clip-norm 1 and a longer warm-up",
    ),
    (
        r"Minimum loss scale reached",
        "the training diverged under --fp16; lower --lr, set --clip-norm 1, or use --bf16",
    ),
    (
        r"out of memory|can't allocate memory",
        "out of memory; lower --max-tokens or --batch-size (and raise --update-freq to keep the batch's size)",
    ),
    (
        r"(?i)connection (?:closed|reset) by|broken pipe|gloo.*timed? ?out|NCCL.*(?:timeout|aborted|remote process)",
        ANOTHER_PROCESS,
    ),
    (r"No space left on device", "no space left on device; free some and start the same command again"),
)


def explain(error: BaseException) -> UserError | None:
    """The error to show to the user: a `UserError` among the causes, or ours for a known error of fairseq or torch.

    None for an unknown error.
    """
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return cause
    for cause in _chain(error):
        frames = [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
        if isinstance(cause, KeyError) and cause.args == ("_name",):
            return UserError("the checkpoint belongs to a plugin that is not loaded; give its --user-dir")
        if (isinstance(cause, IndexError) and "batch_by_size" in frames) or "The dataset is empty" in str(cause):
            split = "the training set" if "get_train_iterator" in frames else "a split"
            return UserError(
                f"every sentence of {split} is filtered out: longer than --max-source-positions or "
                "--max-target-positions; raise them, or prepare shorter sentences"
            )
        if isinstance(cause, IndexError) and "embedding" in frames and str(cause) == "index out of range in self":
            return UserError(
                "the data uses numbers that the dictionary does not have: it is truncated, or another corpus's; "
                "prepare the data again"
            )
        if "Torch not compiled with CUDA enabled" in str(cause) and "train_step" in frames:
            return UserError("--fp16 overflowed, which fairseq cannot handle on the CPU; use --bf16 there")
        for pattern, text in KNOWN:
            match = re.search(pattern, str(cause))
            if match is not None:
                return UserError(text.format(match[0], *match.groups()))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, nearest first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
