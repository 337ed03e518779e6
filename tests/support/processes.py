"""Finding the processes of a training, for tests that kill them."""

import contextlib
import os
import sys
from pathlib import Path


def with_standard_input(file: Path) -> list[int]:
    """Processes that have `file` as their standard input, in the order they were started (Linux).

    Trainings have the lock of their run folder there.
    """
    place = str(file.resolve())
    processes = []
    for name in os.listdir("/proc") if sys.platform == "linux" else []:
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if os.readlink(f"/proc/{name}/fd/0") == place:
                    processes.append(int(name))
    return sorted(processes)
