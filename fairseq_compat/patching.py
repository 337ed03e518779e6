"""Replacing functions of fairseq: once, however often the patches are applied."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

# On each patched class or module: the names that were replaced. Another package may wrap the same function afterwards,
# so the function itself does not show whether ours is inside it.
RECORD = "_fairseq_compat_replaced"


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Set `owner.name` to `make(original)`, unless that was done before.

    Args:
        owner: a class or module of fairseq.
        name: one of its functions or properties.
        make: returns the replacement for the function that it is given.
    """
    if RECORD not in vars(owner):
        setattr(owner, RECORD, set())
    replaced: set[str] = vars(owner)[RECORD]
    if name not in replaced:
        setattr(owner, name, make(getattr(owner, name)))
        replaced.add(name)


@contextlib.contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Set `owner.name` to `replacement` within the block."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
