"""Messages to users: lines on standard output, warnings and progress on standard error."""

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

from thoth_core.errors import UserError

T = TypeVar("T")

INTERVAL = 10.0  # seconds between two lines of progress, where there is no terminal for a progress bar


def say(message: str) -> None:
    """Print a line on standard output at once."""
    print(message, flush=True)


def warn(message: str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def progress(items: Iterable[T], label: str, total: int, stream: TextIO | None = None) -> Iterator[T]:
    """Pass on `items`, and show progress on `stream` (default: stderr) once that takes longer than a moment."""
    stream = stream or sys.stderr
    if stream.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, leave=False, delay=1, file=stream)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        if done % 1024 == 0 and time.monotonic() - last > INTERVAL:
            last = time.monotonic()
            print(f"{label}: {done:,} of {total:,}", file=stream, flush=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence warnings and informational logs of libraries. What matters to users we report ourselves."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def missing_modules_explained() -> Iterator[None]:
    """Turn an import of a module that is not installed into a UserError with the remedy."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} has no module {error.name}: install this checkout into it (pip install -e .), "
            "or name another Python with the variable PYTHON"
        ) from None
