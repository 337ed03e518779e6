"""Drop-in for fairseq-train: `python -m fairseq_compat.train DATA OPTIONS`, also under torchrun.

It takes fairseq-train's options and differs in this: interrupted trainings resume exactly
(--update-epoch-batch-itr True is the default), several processes work under torchrun on CPUs too, --bf16 works
without XLA, checkpoints survive a full disk, logs are quiet, and errors are one line that names cause and remedy. The
processes of a torchrun that was killed end too. If the environment variable FAIRSEQ_COMPAT_EVENTS names a file,
progress is reported there (see `fairseq_compat.events`) instead of in the log.
"""

import argparse
import ctypes
import os
import signal
import sys
from typing import Any

import fairseq_compat
from fairseq_compat import commands, errors, events, logs
from thoth_core import allocator


def main() -> None:
    """Parse the command line and train, as fairseq_cli.train.cli_main does."""
    end_with_torchrun()
    allocator.keep_freed_memory()
    commands.start("train")
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.distributed import utils as distributed_utils

    with commands.short_usage_errors("train"):
        arguments = options.parse_args_and_arch(options.get_training_parser(), modify_parser=_set_defaults)
    cfg = convert_namespace_to_omegaconf(arguments)
    distributed_utils.call_main(cfg, run)
    leave_process_group()


def run(cfg: Any) -> None:
    """Train in this process. fairseq may start it in one process per GPU."""
    fairseq_compat.install()
    from fairseq.distributed import utils as distributed_utils
    from fairseq_cli import train

    from fairseq_compat import launch, reporting

    logs.quiet()
    launch.check_alike(cfg)
    if os.environ.get(events.VARIABLE) and distributed_utils.is_master(cfg.distributed_training):
        reporting.train_and_report(cfg)
    else:
        train.main(cfg)


def end_with_torchrun() -> None:
    """Under torchrun, let this process end when torchrun does, even by SIGKILL (Linux).

    torchrun starts each process in a session of its own, which signals to torchrun's group do not reach.
    """
    set_parent_death_signal = 1
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)


def _set_defaults(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(update_epoch_batch_itr=True)


def leave_process_group() -> None:
    """End torch's communication between processes, if there is any."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Under this name, so that the processes that fairseq starts find `run`.
    from fairseq_compat.train import main as entry

    errors.main(entry)
