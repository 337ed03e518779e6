"""Replacing functions of fairseq: once, however often the patches are applied."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

# On each patched class or module: the replaced names, each with the function that made the replacement. Several
# packages may wrap one function, so neither its name nor the function itself shows whether a given wrapper is inside.
RECORD = "_fairseq_compat_replaced"


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Set `owner.name` to `make(original)`, unless the same `make` has replaced it before.

    Args:
        owner: a class or module of fairseq.
        name: one of its functions or properties.
        make: returns the replacement for the function that it is given.
    """
    if RECORD not in vars(owner):
        setattr(owner, RECORD, set())
    replaced: set[tuple[str, str]] = vars(owner)[RECORD]
    key = (name, f"{make.__module__}.{make.__qualname__}")
    if key not in replaced:
        setattr(owner, name, make(getattr(owner, name)))
        replaced.add(key)


@contextlib.contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Set `owner.name` to `replacement` within the block."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
