"""Names of results in a run's folder: they tell apart what was requested where it is not the default."""

import argparse
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from thoth_core.errors import UserError

LONGEST = 200  # bytes of a name; file systems take 255, and endings and temporary names need some


def requested(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The requested checkpoint and search, where they are not the default: [("average", "5"), ("beam", "1")]."""
    values = {name: getattr(arguments, name) for name in ("average", "beam", "lenpen")}
    options = [(name, f"{value:g}") for name, value in values.items() if value is not None]
    if arguments.average is None and arguments.checkpoint != "best":
        options.insert(0, ("checkpoint", arguments.checkpoint))
    return options


def name(parts: Sequence[str], arguments: argparse.Namespace) -> str:
    """A name of its own for each request: ("evaluation", "valid") → "evaluation-valid-average-5-exit_policy=fixed".

    A name of more than `LONGEST` bytes ends in a fingerprint of the whole.
    """
    options = [f"{option}-{value}".removeprefix("checkpoint-") for option, value in requested(arguments)]
    whole = "-".join([*parts, *options, *arguments.override]).encode()
    if len(whole) > LONGEST:
        fingerprint = hashlib.sha256(whole).hexdigest()[:16]
        whole = whole[: LONGEST - len(fingerprint) - 1] + f"-{fingerprint}".encode()
    return whole.decode(errors="ignore")


def short_name(argument: str, option: str) -> str:
    """The folder name for a CORPUS or MODEL: the argument itself, or the stem of a path to a .yaml file."""
    name = Path(argument).stem if argument.endswith((".yaml", ".yml")) else argument
    if not name or name.startswith(".") or "/" in name or os.sep in name:
        raise UserError(f"{option} {argument!r} is neither a name nor a path to a .yaml file")
    return name
