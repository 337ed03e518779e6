"""What was asked of a trained model where it is not the default: in the names of files, and in calls to repeat it."""

import argparse
import hashlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from thoth_core.errors import UserError

LONGEST = 200  # bytes of a name; file systems take 255, with what is added while it is written and by its ending


def decoding(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """[("average", "5"), ("beam", "1")]: the parameters and the search."""
    asked = {name: getattr(arguments, name) for name in ("average", "beam", "lenpen")}
    found = [(name, f"{value:g}") for name, value in asked.items() if value is not None]
    if arguments.average is None and arguments.checkpoint != "best":
        found.insert(0, ("checkpoint", arguments.checkpoint))
    return found


def name(parts: Sequence[str], arguments: argparse.Namespace) -> str:
    """("evaluation", "valid") → "evaluation-valid-average-5-exit_policy=fixed": another question has another name.

    One of more than `LONGEST` bytes ends in a fingerprint of what is left out.
    """
    asked = [f"{name}-{value}".removeprefix("checkpoint-") for name, value in decoding(arguments)]
    whole = "-".join([*parts, *asked, *arguments.override]).encode()
    if len(whole) > LONGEST:
        fingerprint = hashlib.sha256(whole).hexdigest()[:16]
        whole = whole[: LONGEST - len(fingerprint) - 1] + f"-{fingerprint}".encode()
    return whole.decode(errors="ignore")


def call(script: str, arguments: argparse.Namespace, overrides: Sequence[str] = ()) -> str:
    """The call of another recipe with the same models, parameters, search and options, and with more `overrides`."""
    words = [word for name, value in decoding(arguments) for word in (f"--{name}", value)]
    words += ["--cpu"] if arguments.cpu else []
    for override in (*arguments.override, *overrides):
        words += ["--override", override]
    if ensemble := getattr(arguments, "ensemble", []):
        words += ["--ensemble", *ensemble]
    return " ".join([same_run(script, arguments), *([shlex.join(words)] if words else [])])


def same_run(script: str, arguments: argparse.Namespace) -> str:
    """The call of another recipe for the same corpus, model and folders."""
    parts = [script, arguments.corpus, arguments.model]
    for name in ("data", "runs"):
        if getattr(arguments, name) != Path(name):
            parts += [f"--{name}", str(getattr(arguments, name))]
    return shlex.join(parts)


def short_name(argument: str, option: str) -> str:
    """The folder name that CORPUS or MODEL stands for: itself, or the stem of a path to a .yaml file."""
    name = Path(argument).stem if argument.endswith((".yaml", ".yml")) else argument
    if not name or name.startswith(".") or "/" in name or os.sep in name:
        raise UserError(f"{option} {argument!r} is neither a name nor a path to a .yaml file")
    return name
