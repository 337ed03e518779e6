"""Locks between processes. A lock is a file that one process at a time may hold.

The operating system releases a lock when the last process that holds its descriptor ends, however it ends.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from recipes.console.messages import say
from recipes.storage.disk import alive
from thoth_core.errors import UserError

NOTICE = 2.0  # seconds of waiting before the user hears of it
INTERVAL = 0.1  # seconds between two attempts


class LockHeldError(UserError):
    """Another process holds the lock; the message names it."""


@dataclass(frozen=True)
class Lock:
    """A held lock. A child process that inherits `descriptor` keeps the lock held after this process has ended."""

    descriptor: int

    def add_holder(self, process: int) -> None:
        """Record `process`, which has inherited the descriptor, for the messages to others who want the lock."""
        os.write(self.descriptor, f"{process} {socket.gethostname()}\n".encode())


@contextlib.contextmanager
def locked(path: Path, *, what: str, patience: float | None, remove: bool = False) -> Iterator[Lock]:
    """Hold the lock file `path`, which is created if it is missing.

    Args:
        path: the lock file. It contains the process id and host of each holder.
        what: what another holder does, as a clause: "another training works in runs/toy/mini".
        patience: seconds to wait for another holder to end; None waits without limit.
        remove: whether to delete the file afterwards.

    Raises:
        LockHeldError: another process still holds the lock after `patience` seconds.
        OSError: the file cannot be written, or its file system has no locks.
    """
    descriptor = _acquire(path, what, patience)
    try:
        os.ftruncate(descriptor, 0)
        lock = Lock(descriptor)
        lock.add_holder(os.getpid())
        yield lock
    finally:
        if remove:  # before the lock is released: later, the file could be another process's
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, what: str, patience: float | None) -> int:
    """The descriptor of the locked file `path`. Raises as `locked`."""
    begin = time.monotonic()
    announced = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            if lock_descriptor(descriptor, blocking=False) and _names(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        waited = time.monotonic() - begin
        if patience is not None and waited >= patience:
            raise LockHeldError(f"{what} ({_holders(path)}); wait for it to end, or stop it")
        if waited >= NOTICE and not announced:
            announced = True
            say(f"waiting: {what} ({_holders(path)})")
        time.sleep(INTERVAL)


def _names(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the name of the open file: the last holder may have deleted it in the meantime."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holders(path: Path) -> str:
    """The recorded holders, `process 12 on node0`, without those of this host that have ended."""
    here = socket.gethostname()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = []
    for line in lines:
        process, _, host = line.partition(" ")
        if process.isdigit() and host and (host != here or alive(int(process))):
            names.append(f"process {process} on {host}")
    return ", ".join(names) or "an unknown process"
