"""Several processes under torchrun, and half precision on the CPU.

Faults of fairseq that are fixed here, in the configuration that its commands pass to `call_main`:

- torchrun on a machine without GPUs silently runs N separate trainings that write the same files.
- Resuming on several processes fails: fairseq broadcasts the checkpoint as objects that torch refuses to load.
- `--bf16` requires torch_xla, on CPU and GPU alike; `--fp16` on the CPU asks CUDA for its device.
- `--amp` does nothing on the CPU.
- Processes of one training that were given different options silently average each other's gradients.
- Faults of the data appear late and without their cause (see `fairseq_compat.data`).
"""

import importlib.util
import logging
import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fairseq_compat import attention, data, errors, patching
from thoth_core.errors import UserError

logger = logging.getLogger(__name__)

# The modules of the functions that commands pass to `call_main`: those that train, and those of fairseq's own commands.
# Our commands handle errors themselves (`errors.main`).
TRAINING = ("fairseq_cli.train", "fairseq_cli.hydra_train", "fairseq_compat.train", "__main__")
FAIRSEQ = ("fairseq_cli.train", "fairseq_cli.hydra_train", "fairseq_cli.interactive", "fairseq_cli.validate")

# Sections of the configuration that affect the result, and options in them that may differ between machines.
SECTIONS = ("model", "task", "criterion", "optimizer", "lr_scheduler", "optimization", "dataset", "common")
LOCAL = re.compile(
    r"data|user_dir|num_workers(_valid)?|save_dir|restore_file|local_rank|device_id|distributed_\w+|log_\w+|tensorboard_\w+"
)

TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def install() -> None:
    """Wrap `call_main`, through which fairseq's commands start."""
    from fairseq.distributed import utils as distributed_utils

    patching.replace(distributed_utils, "call_main", _call_main)


def _call_main(call_main: Callable[..., None]) -> Callable[..., None]:
    def prepare_and_call_main(cfg: Any, main: Callable[..., None], **arguments: Any) -> None:
        prepare(cfg)
        if main.__module__ in TRAINING:
            data.check(cfg)
        try:
            call_main(cfg, main, **arguments)
        except Exception as error:
            known = errors.explain(error) if main.__module__ in FAIRSEQ else None
            if known is None:
                raise
            errors.refuse(str(known))

    return prepare_and_call_main


def prepare(cfg: Any) -> None:
    """Correct the configuration `cfg` of any of fairseq's commands, in place.

    Raises:
        UserError: this machine cannot do what the options request.
    """
    prepare_precision(cfg)
    _prepare_processes(cfg, _on_gpu(cfg))


def _on_gpu(cfg: Any) -> bool:
    return torch.cuda.is_available() and not cfg.common.cpu


def prepare_precision(cfg: Any) -> None:
    """The part of `prepare` that concerns half precision. Raises UserError as `prepare`."""
    if cfg.common.bf16 and importlib.util.find_spec("torch_xla") is None:
        # fairseq takes --bf16 to mean a TPU. Each section has its own copy of the flag.
        for section in [cfg, *(cfg[name] for name in cfg)]:
            if getattr(section, "tpu", False):
                section.tpu = False
    if _on_gpu(cfg):
        return
    if cfg.common.amp:
        raise UserError("--amp has no effect on the CPU; use --bf16 there, or leave it out")
    if cfg.common.fp16:
        cfg.common.fp16_no_flatten_grads = True  # flattening asks CUDA for its device
    attention.prefer_products_for_short_rows(cfg)


def _prepare_processes(cfg: Any, on_gpu: bool) -> None:
    options = cfg.distributed_training
    if options.distributed_init_method is not None or cfg.common.tpu:
        return  # set up by the user
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        if not on_gpu and options.distributed_world_size > 1:
            raise UserError(
                f"--distributed-world-size {options.distributed_world_size} on the CPU: start the processes with "
                f"torchrun --nproc-per-node {options.distributed_world_size} -m fairseq_compat.train instead"
            )
        return
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={world_size} is set but {', '.join(missing)} not: each process would train on its own; "
            "start with torchrun, or unset WORLD_SIZE"
        )
    if options.distributed_world_size not in (1, torch.cuda.device_count(), world_size):
        raise UserError(
            f"--distributed-world-size {options.distributed_world_size} under torchrun with {world_size} processes: "
            "leave the option out"
        )
    if options.pipeline_model_parallel:
        raise UserError("--pipeline-model-parallel does not work under torchrun; leave it out, or use fairseq-train")
    options.distributed_init_method = "env://"
    options.distributed_no_spawn = True
    options.distributed_world_size = world_size
    options.distributed_rank = int(os.environ["RANK"])
    # Each process reads the checkpoint itself; the folder is shared anyway, since each looks for it there.
    cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
    if on_gpu:
        local_rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= devices:
            raise UserError(
                f"torchrun starts more processes than this machine has GPUs ({devices}); "
                f"use --nproc-per-node {devices}, or --cpu"
            )
        options.device_id = local_rank
    else:
        if options.ddp_backend not in ("pytorch_ddp", "c10d", "legacy_ddp", "no_c10d"):
            raise UserError(
                f"--ddp-backend {options.ddp_backend} does not work on the CPU; leave it out (legacy_ddp is used)"
            )
        options.distributed_backend = "gloo"
        options.ddp_backend = "legacy_ddp"  # pytorch_ddp demands a device
    logger.info(
        "process %d of %d (%s, %s)",
        options.distributed_rank,
        world_size,
        options.distributed_backend,
        options.ddp_backend,
    )


def check_alike(cfg: Any) -> None:
    """Raise a UserError, in every process, unless all processes of this training have the same options."""
    if not torch.distributed.is_initialized():
        return
    mine = {f"{section}.{name}": value for section in SECTIONS for name, value in _options(cfg[section]).items()}
    gathered: list[dict[str, str]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, mine)
    for rank, theirs in enumerate(gathered):
        for name in sorted(mine | theirs):
            if theirs.get(name) != gathered[0].get(name):
                option = name.partition(".")[2].replace("_", "-")
                raise UserError(
                    f"--{option} is {theirs.get(name)} in process {rank}, but {gathered[0].get(name)} in process 0; "
                    "start all with the same options"
                )


def _options(section: Any) -> dict[str, str]:
    """The options of a section, a namespace or a configuration, that affect the result."""
    options: Mapping[str, Any] = vars(section) if isinstance(section, Namespace) else section or {}
    return {str(name): str(options[name]) for name in options if not LOCAL.fullmatch(str(name))}
