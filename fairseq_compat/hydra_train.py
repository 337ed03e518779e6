"""Drop-in for fairseq-hydra-train.

    python -m fairseq_compat.hydra_train --config-dir DIR --config-name NAME OVERRIDES

It differs from fairseq-hydra-train as `fairseq_compat.train` differs from fairseq-train. Our fixes are applied before
fairseq decides on processes, with a plugin or without: it runs under torchrun, on CPUs too.
"""

import os

from fairseq_compat import commands, errors
from fairseq_compat.train import end_with_torchrun, leave_process_group, run
from thoth_core import allocator
from thoth_core.errors import UserError


def main() -> None:
    """Compose the configuration and train, as fairseq_cli.hydra_train.cli_main does."""
    end_with_torchrun()
    allocator.keep_freed_memory()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints errors itself and ends the process
    hydra_train = commands.start("hydra_train")
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    hydra_train.pre_main = run
    try:
        hydra_train.cli_main()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"Hydra cannot use this configuration: {' '.join(str(error).split())}") from error
    leave_process_group()


if __name__ == "__main__":
    # Under this name, so that the processes that fairseq starts find `run`.
    from fairseq_compat.hydra_train import main as entry

    errors.main(entry)
