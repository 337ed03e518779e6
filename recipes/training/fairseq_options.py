"""Options of fairseq-train by name: how they are read and written, and which of them the recipe sets itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from thoth_core.errors import UserError

Options = dict[str, Any]

_SUBSETS = "the validation set alone chooses the best checkpoint: no test set may"
_OF_THE_RECIPE = "it is an option of recipes/train.sh itself: put it before the --"
_PROCESSES = "use --processes or --gpus"
_RESUMING = "a run resumes exactly; --force starts it from scratch"

# Options that choose folders, processes or the log, which is the recipe's task; with the reason or remedy.
RESERVED = {
    "data": "CORPUS and --data choose the data",
    "source-lang": "the corpus fixes the languages",
    "target-lang": "the corpus fixes the languages",
    "train-subset": "the corpus fixes the training set",
    "valid-subset": _SUBSETS,
    "combine-valid-subsets": _SUBSETS,
    "ignore-unused-valid-subsets": _SUBSETS,
    "save-dir": "--runs chooses the folder",
    "restore-file": "a run resumes from its own checkpoints",
    "reset-optimizer": _RESUMING,
    "reset-dataloader": _RESUMING,
    "reset-meters": _RESUMING,
    "reset-lr-scheduler": _RESUMING,
    "no-save": "recipes/evaluate.sh needs the checkpoints",
    "no-last-checkpoints": "resuming needs the last checkpoint",
    "user-dir": "the model file names the plugin (user_dir)",
    "cpu": _OF_THE_RECIPE,
    "seed": _OF_THE_RECIPE,
    "minutes": _OF_THE_RECIPE,
    "force": _OF_THE_RECIPE,
    "stop-time-hours": "use --minutes",
    "help": "fairseq-train --help shows it",
    "log-format": "the recipe writes the log",
    "log-file": "the recipe writes train.log",
    "no-progress-bar": "the recipe writes the log",
    "distributed-world-size": _PROCESSES,
    "distributed-num-procs": _PROCESSES,
    "distributed-rank": _PROCESSES,
    "distributed-init-method": _PROCESSES,
    "distributed-port": _PROCESSES,
    "distributed-no-spawn": _PROCESSES,
    "device-id": "use CUDA_VISIBLE_DEVICES",
    "local-rank": _PROCESSES,
}

# Options that may change between two calls for one run: when it stops, and what it reports and keeps.
LIMITS = ("max-update", "max-epoch", "patience", "minutes")
DISPLAY = ("log-interval", "num-workers", "keep-last-epochs", "no-epoch-checkpoints")


def with_dashes(options: Mapping[str, Any]) -> Options:
    """The same options with dashes in their names, as fairseq-train spells them."""
    return {str(name).replace("_", "-"): value for name, value in options.items()}


def from_command_line(tokens: Sequence[str]) -> Options:
    """Options given after `--`: `--name value`, `--name=value`, or `--name` alone for a flag.

    Raises:
        UserError: a value without an option, or an option's short form.
    """
    options: Options = {}
    name = None
    for token in tokens:
        if token.startswith("--") and len(token) > 2:
            name, equals, value = token[2:].partition("=")
            options[name] = value if equals else True
            if equals:
                name = None
        elif name is None:
            raise UserError(
                f"{token!r} after --: expected fairseq-train options in their long form, such as --lr 0.001"
            )
        else:
            options[name] = token
            name = None
    return with_dashes(options)


def to_arguments(options: Mapping[str, Any]) -> list[str]:
    """Command-line arguments: True is a bare flag, False and None are left out, all else is a value."""
    arguments: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        if value is True:
            arguments.append(f"--{name}")
        elif str(value).startswith("-"):
            arguments.append(f"--{name}={value}")  # argparse would take a bare -x for an option
        else:
            arguments += [f"--{name}", str(value)]
    return arguments


def is_language_model(options: Mapping[str, Any]) -> bool:
    """Whether these are the options of a language model, which reads the corpus's target language alone."""
    return options.get("task") == "language_modeling"


def refuse_reserved(options: Mapping[str, Any], where: str) -> None:
    """Raise a UserError for an option that the recipe itself sets."""
    for name in options:
        if name in RESERVED:
            raise UserError(f"--{name} ({where}) cannot be set here: {RESERVED[name]}")


def check_limits(limits: Mapping[str, Any]) -> None:
    """Raise a UserError for a limit that is not a number above 0, which fairseq would take for no limit."""
    for name, value in limits.items():
        kind = "a number above 0" if name == "minutes" else "a whole number of at least 1"
        try:
            number = float(value) if name == "minutes" else int(str(value))
        except (TypeError, ValueError):
            number = 0
        if isinstance(value, bool) or not 0 < number < 1e9:
            raise UserError(f"--{name} must be {kind}, but is {value}")
