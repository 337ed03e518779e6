"""Drop-in for fairseq-train: `python -m fairseq_compat.train DATA OPTIONS`, also under torchrun.

It takes fairseq-train's options and differs in this: interrupted trainings resume exactly
(--update-epoch-batch-itr True is the default), several processes work under torchrun on CPUs too, --bf16 works
without XLA, checkpoints survive a full disk, logs are quiet, errors are one line that names cause and remedy, and
the processes of a torchrun that was killed do not train on.
"""

import argparse
import ctypes
import os
import signal
import sys
from typing import Any, NoReturn

import fairseq_compat
from fairseq_compat import errors, logs
from thoth_core import allocator


def main() -> None:
    """Parse the command line and train, as fairseq_cli.train.cli_main does."""
    end_with_torchrun()
    allocator.keep_freed_memory()
    logs.quiet()
    from fairseq_cli import train  # noqa: F401  (the first import of fairseq: it sets up the logging)

    logs.quiet()
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.distributed import utils as distributed_utils

    fairseq_compat.install()
    parser = options.get_training_parser()
    parser.error = _refuse
    arguments = options.parse_args_and_arch(parser, modify_parser=_set_defaults)
    cfg = convert_namespace_to_omegaconf(arguments)
    distributed_utils.call_main(cfg, run)
    leave_process_group()


def run(cfg: Any) -> None:
    """Train in this process. fairseq may start it in a process of its own for each GPU."""
    fairseq_compat.install()
    from fairseq_cli import train

    from fairseq_compat import launch

    logs.quiet()
    launch.check_alike(cfg)
    train.main(cfg)


def end_with_torchrun() -> None:
    """Started by torchrun, end when it ends, be it by SIGKILL (Linux); it gives each process a session of its own."""
    set_parent_death_signal = 1
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)


def _refuse(message: str) -> NoReturn:
    """argparse's error without the pages of usage in front of it."""
    print(f"error: {message}; see python -m fairseq_compat.train --help", file=sys.stderr)
    sys.exit(2)


def _set_defaults(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(update_epoch_batch_itr=True)


def leave_process_group() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Under this name, so that the processes that fairseq starts find `run`.
    from fairseq_compat.train import main as entry

    errors.main(entry)
