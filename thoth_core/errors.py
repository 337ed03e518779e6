"""Errors for users, and ending on SIGTERM as on Ctrl-C."""

import signal
from types import FrameType
from typing import NoReturn


class UserError(Exception):
    """Something the user can fix: the message names the file or option, and the remedy."""


class OptionError(UserError, ValueError):
    """A model or task cannot be built with these options. For callers from Python it is a ValueError too."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which batch systems end a job, after `end_as_by_ctrl_c`."""


def end_as_by_ctrl_c() -> None:
    """From now on, let SIGTERM end this process as Ctrl-C does, so that it cleans up first."""

    def terminate(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
