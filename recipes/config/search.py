"""Options of beam search: their schema, their defaults, and the block `generate` of a model file."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.fields import FieldInfo

from recipes.storage.records import DocumentedRecord
from thoth_core.errors import UserError


class SearchOptions(DocumentedRecord):
    """The options of the beam search."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))

    beam: int = Field(ge=1, le=1000)
    """beam size"""
    lenpen: float = Field(ge=-100, le=100)
    """length penalty: log-probabilities are divided by the length to this power"""
    unkpen: float = Field(ge=-1e9, le=1e9)
    """unknown-word penalty"""
    min_len: int = Field(ge=0, le=10_000)
    """minimum length of a translation in tokens"""
    max_len_a: float = Field(ge=0, le=100)
    """a translation has at most a · source tokens + b tokens: a"""
    max_len_b: int = Field(ge=1, le=100_000)
    """a translation has at most a · source tokens + b tokens: b"""
    no_repeat_ngram_size: int = Field(ge=0, le=100)
    """length of the n-grams that may not be repeated (0: all may)"""
    max_tokens: int = Field(ge=1, le=10**9)
    """maximum source tokens per batch; does not affect the scores"""


DEFAULTS = SearchOptions(
    beam=5,
    lenpen=1.0,
    unkpen=0.0,
    min_len=1,
    max_len_a=0.0,
    max_len_b=200,
    no_repeat_ngram_size=0,
    max_tokens=2000,
)


def search_options(options: Mapping[str, Any], where: str) -> SearchOptions:
    """`DEFAULTS` with the values of `options`, by their names with dashes; numbers or their text.

    Raises:
        UserError: an option is unknown, is not a number of its type or is out of range. `where` begins the message.
    """
    fields = {field.alias or name: (name, field) for name, field in SearchOptions.model_fields.items()}
    values: dict[str, int | float] = {}
    for option, value in options.items():
        if option not in fields:
            raise UserError(f"{where}: unknown option {option}; valid ones: {', '.join(fields)}")
        name, field = fields[option]
        values[name] = _number(option, value, field, where)
    return DEFAULTS.model_copy(update=values)


def _number(option: str, value: Any, field: FieldInfo, where: str) -> int | float:
    """`value` as a number of the field's type and in its range; else a UserError."""
    kind: type[int] | type[float] = int if field.annotation is int else float
    (low,) = (rule.ge for rule in field.metadata if hasattr(rule, "ge"))
    (high,) = (rule.le for rule in field.metadata if hasattr(rule, "le"))
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    # A number that its type cannot hold (2.5 beams) is refused and not rounded.
    if isinstance(value, bool) or number is None or not low <= number <= high or float(number) != float(value):
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{where}: {option} must be {what} from {low:g} to {high:g}, but is {value}")
    return number
