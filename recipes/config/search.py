"""Options of beam search: the block `generate` of a model file, and the search that an evaluation requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thoth_core.errors import UserError


@dataclass(frozen=True)
class _Option:
    """A number with its default, whose type is the option's, and its inclusive range."""

    default: int | float
    minimum: float
    maximum: float


# Lengths count tokens after sub-word segmentation; max-tokens counts the source tokens of a batch.
_OPTIONS = {
    "beam": _Option(5, 1, 1000),
    "lenpen": _Option(1.0, -100, 100),
    "unkpen": _Option(0.0, -1e9, 1e9),
    "min-len": _Option(1, 0, 10_000),
    "max-len-a": _Option(0.0, 0, 100),
    "max-len-b": _Option(200, 1, 100_000),
    "no-repeat-ngram-size": _Option(0, 0, 100),
    "max-tokens": _Option(2000, 1, 10**9),
}
DEFAULTS: dict[str, Any] = {name: option.default for name, option in _OPTIONS.items()}


def search_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All options of beam search: `DEFAULTS` with the values of `given`, numbers or their text.

    Raises:
        UserError: an option is unknown, is not a number of its type or is out of range. `where` begins the message.
    """
    result = dict(DEFAULTS)
    for name, value in options.items():
        if name not in _OPTIONS:
            raise UserError(f"{where}: unknown option {name}; valid ones: {', '.join(_OPTIONS)}")
        option = _OPTIONS[name]
        kind = type(option.default)
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        in_range = number is not None and option.minimum <= number <= option.maximum
        # A number that its type cannot hold (2.5 beams) is refused and not rounded.
        if isinstance(value, bool) or number is None or not in_range or float(number) != float(value):
            what = "a whole number" if kind is int else "a number"
            raise UserError(
                f"{where}: {name} must be {what} from {option.minimum:g} to {option.maximum:g}, but is {value}"
            )
        result[name] = number
    return result
