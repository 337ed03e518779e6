"""What our drop-ins for fairseq's commands have in common."""

import argparse
import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, NoReturn

import fairseq_compat
from fairseq_compat import errors, logs, patching


def start(name: str) -> Any:
    """Import fairseq's module `fairseq_cli.NAME` with quiet logs and apply our fixes; returns the module."""
    logs.quiet()
    module = importlib.import_module(f"fairseq_cli.{name}")  # the first import of fairseq sets up its logging
    logs.quiet()
    fairseq_compat.install()
    return module


def run(name: str) -> None:
    """Run fairseq's command fairseq-NAME with our fixes."""
    module = start(name)
    with short_usage_errors(name):
        module.cli_main()


@contextlib.contextmanager
def short_usage_errors(name: str) -> Iterator[None]:
    """Let argparse refuse options with one line, without the pages of usage in front of it."""

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        errors.refuse(f"{message}; see python -m fairseq_compat.{name} --help", status=2)

    with patching.replaced(argparse.ArgumentParser, "error", error):
        yield
