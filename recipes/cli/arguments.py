"""Argument parsing that the commands share."""

import argparse
import math
import re
import sys
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (?:-\w/)?(\S+): must ", r"\1 must ", message)  # from the types below
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`, both included. None sets no upper bound."""
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, but is {text}")
        return value

    return parse


def number(low: float, high: float, *, open_ends: bool = False) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`, both included, or both excluded with `open_ends`.

    An infinite bound sets no bound; the number itself must be finite.
    """
    if math.isinf(high):
        bounds = f"above {low:g}" if open_ends else f"of at least {low:g}"
    else:
        bounds = f"above {low:g} and below {high:g}" if open_ends else f"from {low:g} to {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not (low < value < high if open_ends else low <= value <= high):
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, but is {text}")
        return value

    return parse
