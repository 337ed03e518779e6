"""The name that an argument stands for."""

import os
from pathlib import Path

from thoth_core.errors import UserError


def short_name(argument: str, option: str) -> str:
    """The folder name for a CORPUS or MODEL: the argument itself, or the stem of a path to a .yaml file."""
    name = Path(argument).stem if argument.endswith((".yaml", ".yml")) else argument
    if not name or name.startswith(".") or "/" in name or os.sep in name:
        raise UserError(f"{option} {argument!r} is neither a name nor a path to a .yaml file")
    return name
