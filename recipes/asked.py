"""What was asked of a trained model where it is not the default: in the names of files, and in calls to repeat it."""

import argparse
import shlex
from collections.abc import Sequence

from recipes import runs


def decoding(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """[("average", "5"), ("beam", "1")]: the parameters and the search."""
    asked = {name: getattr(arguments, name) for name in ("average", "beam", "lenpen")}
    found = [(name, f"{value:g}") for name, value in asked.items() if value is not None]
    if arguments.average is None and arguments.checkpoint != "best":
        found.insert(0, ("checkpoint", arguments.checkpoint))
    return found


def names(arguments: argparse.Namespace) -> list[str]:
    """["average-5", "beam-1", "exit_policy=fixed"]: parts of a name, so that another question has another file."""
    return [f"{name}-{value}".removeprefix("checkpoint-") for name, value in decoding(arguments)] + arguments.override


def call(script: str, arguments: argparse.Namespace, overrides: Sequence[str] = ()) -> str:
    """The call of another recipe with the same models, parameters, search and options, and with more `overrides`."""
    words = [word for name, value in decoding(arguments) for word in (f"--{name}", value)]
    words += ["--cpu"] if arguments.cpu else []
    for override in (*arguments.override, *overrides):
        words += ["--override", override]
    if ensemble := getattr(arguments, "ensemble", []):
        words += ["--ensemble", *ensemble]
    return " ".join([runs.call(script, arguments), *([shlex.join(words)] if words else [])])
