"""fairseq's configuration of a training: the object that its options make, and the same as a file for Hydra."""

import contextlib
import dataclasses
import io
import os
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

import fairseq_compat
from recipes.console import messages
from recipes.training import launcher
from thoth_core.errors import UserError

# The groups of fairseq's configuration that a training reads.
GROUPS = (
    *("common", "distributed_training", "dataset", "optimization", "checkpoint", "ema"),
    *("task", "model", "criterion", "optimizer", "lr_scheduler", "bpe", "tokenizer"),
)

# What a configuration file must name whatever folder it is used from.
PATHS = (("task", "data"), ("checkpoint", "save_dir"))


def parse(arguments: Sequence[str]) -> Any:
    """The configuration that `arguments` of fairseq-train make.

    Raises:
        UserError: fairseq does not understand them.
    """
    with _errors_in_one_line():
        return _parse(arguments)


def build(arguments: Sequence[str]) -> tuple[Any, Any, Any]:
    """(configuration, task, model) of the training that `arguments` of fairseq-train describe, built here.

    Raises:
        UserError: they cannot be built.
    """
    with _errors_in_one_line():
        from fairseq import tasks
        from fairseq.dataclass.initialize import add_defaults

        cfg = _parse(arguments)
        add_defaults(cfg)
        task = tasks.setup_task(cfg.task)
        return cfg, task, task.build_model(cfg.model)


def _parse(arguments: Sequence[str]) -> Any:
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    from fairseq_compat import plugins
    from fairseq_compat.launch import prepare_precision

    if "--user-dir" in arguments:
        plugins.load(arguments[arguments.index("--user-dir") + 1])
    parsed = options.parse_args_and_arch(options.get_training_parser(), list(arguments))
    cfg = convert_namespace_to_omegaconf(parsed)
    prepare_precision(cfg)
    return cfg


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Turn fairseq's refusal of options into a UserError; its notes are left out."""
    output = io.StringIO()
    with messages.quiet_libraries():
        fairseq_compat.install()
        try:
            with contextlib.redirect_stderr(output):
                yield
        except UserError:
            raise
        except SystemExit:  # argparse's way to refuse
            raise UserError(launcher.cause(output.getvalue().splitlines())) from None
        except Exception as error:  # fairseq and plugins raise anything; all of it is about these options
            why = f"{type(error).__name__}: {error}".split("\n")[0]
            raise UserError(f"the model cannot be built: {why}") from None


# --- Hydra --------------------------------------------------------------------------------------------------


def for_hydra(arguments: Sequence[str]) -> dict[str, Any]:
    """Hydra's configuration of the training that `arguments` of fairseq-train describe.

    It holds the options that are given, and those that differ from fairseq's defaults.

    Raises:
        UserError: fairseq does not understand the arguments.
    """
    cfg = parse(arguments)
    set_options = {token[2:].partition("=")[0].replace("-", "_") for token in arguments if token.startswith("--")}
    written: dict[str, Any] = {
        # Else Hydra makes a folder for each run, starts the training in it, and keeps a log of its own.
        "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
        "hydra": {"run": {"dir": "."}, "job": {"chdir": False}, "output_subdir": None},
    }
    for group in GROUPS:
        if block := _block(group, cfg[group], arguments, set_options):
            written[group] = block
    for group, name in PATHS:
        written[group][name] = os.path.abspath(written[group][name])
    written["common"]["reset_logging"] = True  # Hydra's own logging would not be read as fairseq's
    return written


def as_yaml(configuration: Mapping[str, Any], head: str) -> str:
    """The text of the file, under the line `head` as a comment."""
    return f"# {head}\n" + yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True, width=110)


def _block(group: str, options: Any, arguments: Sequence[str], set_options: set[str]) -> dict[str, Any]:
    """What Hydra's configuration holds of one group."""
    if options is None:
        return {}
    if isinstance(options, Namespace):
        return _block_without_dataclass(options, arguments)
    default = _defaults(group, options)
    head = {} if getattr(options, "_name", None) is None else {"_name": options._name}
    return head | _differences(options, default, set_options)


def _defaults(group: str, options: Any) -> Any:
    """The dataclass instance that `options` was made from."""
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    name = getattr(options, "_name", None)
    if group == "model":
        kind = MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY.get(name, name)]
    elif group == "task":
        kind = TASK_DATACLASS_REGISTRY[name]
    elif group in REGISTRIES:
        kind = REGISTRIES[group]["dataclass_registry"][name]
    else:
        kind = FairseqConfig.__dataclass_fields__[group].type
    return kind() if isinstance(kind, type) else kind


def _differences(options: Any, default: Any, set_options: set[str]) -> dict[str, Any]:
    """Fields that were given or differ from the default, without those that follow another group's."""
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(default):
        before, now = getattr(default, field.name), options.get(field.name)
        if field.name == "_name" or field.name not in options:
            continue
        if dataclasses.is_dataclass(before):
            if inner := _differences(now, before, set_options):
                kept[field.name] = inner
        elif isinstance(before, str) and before.startswith("${"):
            follows = before[2:-1].rpartition(".")[2] == field.name
            if not follows and field.name in set_options:
                kept[field.name] = _plain(now)
        elif field.name in set_options or not _same(_plain(now), _plain(before)):
            kept[field.name] = _plain(now)
    return kept


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, also where one is a number and the other its text."""
    return bool(one == other) or str(one) == str(other)


def _block_without_dataclass(options: Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """The given options of a model without a dataclass; its architecture sets the others."""
    from fairseq.models import ARCH_MODEL_REGISTRY

    declared = ArgumentParser(argument_default=SUPPRESS, allow_abbrev=False, add_help=False)
    ARCH_MODEL_REGISTRY[options._name].add_args(declared)
    set_options, _ = declared.parse_known_args(list(arguments))
    return {"_name": options._name} | {name: _plain(value) for name, value in vars(set_options).items()}


def _plain(value: Any) -> Any:
    """`value` as plain Python values, which YAML can hold."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)  # a choice
