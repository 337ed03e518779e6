"""fairseq-train options: the recipe's own, the model file's, those for one corpus, the command line's."""

from collections.abc import Mapping, Sequence
from typing import Any

from thoth_core.errors import UserError

Options = dict[str, Any]

# Where the recipe puts things, and how it launches and reads the training: not for others to set.
RESERVED = {
    "data": "CORPUS and --data choose the data",
    "source-lang": "the corpus fixes the languages",
    "target-lang": "the corpus fixes the languages",
    "train-subset": "the corpus fixes what is trained on",
    "valid-subset": "the validation set alone chooses the best checkpoint: no test set may",
    "combine-valid-subsets": "the validation set alone chooses the best checkpoint: no test set may",
    "ignore-unused-valid-subsets": "the validation set alone chooses the best checkpoint: no test set may",
    "save-dir": "--runs chooses the folder",
    "restore-file": "a run resumes from its own checkpoints",
    "reset-optimizer": "a run resumes exactly; --force starts it anew",
    "reset-dataloader": "a run resumes exactly; --force starts it anew",
    "reset-meters": "a run resumes exactly; --force starts it anew",
    "reset-lr-scheduler": "a run resumes exactly; --force starts it anew",
    "no-save": "recipes/evaluate.sh needs the checkpoints",
    "no-last-checkpoints": "resuming needs the last checkpoint",
    "user-dir": "the model file names the plugin (user_dir)",
    "cpu": "it is an option of recipes/train.sh itself: put it before the --",
    "seed": "it is an option of recipes/train.sh itself: put it before the --",
    "stop-time-hours": "use --minutes",
    "help": "fairseq-train --help shows it",
    "force": "it is an option of recipes/train.sh itself: put it before the --",
    "log-format": "the recipe reads the log",
    "log-file": "the recipe writes train.log",
    "no-progress-bar": "the recipe reads the log",
    "distributed-world-size": "use --processes or --gpus",
    "distributed-num-procs": "use --processes or --gpus",
    "distributed-rank": "use --processes or --gpus",
    "distributed-init-method": "use --processes or --gpus",
    "distributed-port": "use --processes or --gpus",
    "distributed-no-spawn": "use --processes or --gpus",
    "device-id": "use CUDA_VISIBLE_DEVICES",
    "local-rank": "use --processes or --gpus",
}

# What may change between two calls of the same run: when it stops, what it says and keeps.
LIMITS = ("max-update", "max-epoch", "patience", "minutes")
DISPLAY = ("log-interval", "num-workers", "keep-last-epochs", "no-epoch-checkpoints")


def normalised(options: Mapping[str, Any]) -> Options:
    """The same options with dashes in their names, as fairseq-train spells them."""
    return {str(name).replace("_", "-"): value for name, value in options.items()}


def from_command_line(tokens: Sequence[str]) -> Options:
    """Options given after `--`: `--name value`, `--name=value`, or `--name` alone for a flag."""
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
    return normalised(options)


def is_language_model(options: Mapping[str, Any]) -> bool:
    """Whether these are the options of a language model, which reads the corpus's target language alone."""
    return options.get("task") == "language_modeling"


def refuse_reserved(options: Mapping[str, Any], where: str) -> None:
    """Raise a UserError for an option that the recipe itself sets."""
    for name in options:
        if name in RESERVED:
            raise UserError(f"--{name} ({where}) cannot be set here: {RESERVED[name]}")


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
