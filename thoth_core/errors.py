"""Errors for users, and ending on SIGTERM as on Ctrl-C."""

import signal
from types import FrameType
from typing import NoReturn


class UserError(Exception):
    """Something the user can fix: the message names the file or option, and the remedy."""


class OptionError(UserError, ValueError):
    """A model or task cannot be built with these options: a ValueError to who calls from Python."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which batch systems end a job, where `end_as_by_ctrl_c` was called."""


def end_as_by_ctrl_c() -> None:
    """From now on let SIGTERM end this process as Ctrl-C does: what was begun is put away first."""

    def terminate(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one would leave what the first has begun to put away
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
