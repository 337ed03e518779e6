"""Slots of the generated corpus's frames: the types of what fills them, and how it is drawn.

A slot draws a filler: a pair (german, english), both sides `Forms`. Only whole numbers are drawn, so that a seed gives
the same phrases on every platform.
"""

from collections.abc import Callable
from random import Random
from typing import TypeVar

from recipes.data.quickstart.phrases import Pair

T = TypeVar("T")


class Forms(dict[str, str]):
    """A phrase by the names of its forms; the plain form has the name "". In a frame `{slot:name}` chooses one."""

    def __format__(self, name: str) -> str:
        return self[name]


Filler = tuple[Forms, Forms]
Slot = Callable[[Random], Filler]


def by_weight(rng: Random, weights: dict[T, int]) -> T:
    """Choose a key in proportion to its weight."""
    at = rng.randrange(sum(weights.values()))
    for key, weight in weights.items():
        at -= weight
        if at < 0:
            return key
    raise AssertionError("unreachable: the weights add up")


def one_form(phrase: Pair) -> Filler:
    """A filler with the plain form only."""
    return Forms({"": phrase[0]}), Forms({"": phrase[1]})


def size(rng: Random, *ranges: tuple[int, int, int]) -> int:
    """A number from one of the ranges (weight, first, last), never 1, 101, ... (see `phrases.price`)."""
    first, last = by_weight(rng, {(first, last): weight for weight, first, last in ranges})
    n = rng.randrange(first, last + 1)
    return n if n % 100 != 1 else n + 1
