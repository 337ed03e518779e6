"""The request of a command that uses a trained model: which model, text and search, as its options give them."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from recipes.storage import commands
from thoth_core.errors import UserError

DEFAULT_AVERAGE = 5  # epochs' checkpoints
LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names and endings need some of them


@dataclass(frozen=True)
class Request:
    """The options that several commands share."""

    corpus: str  # a name or a path to a .yaml file, as `model`
    model: str
    data: Path
    runs: Path
    split: str
    checkpoint: str = "best"  # best, last or average
    average: int | None = None  # number of epochs' checkpoints to average
    beam: int | None = None  # None: the model file's, as the next two
    lenpen: float | None = None
    max_tokens: int | None = None
    overrides: tuple[str, ...] = ()  # NAME=VALUE each
    ensemble: tuple[str, ...] = ()  # other models
    cpu: bool = False

    def of_model(self, model: str) -> "Request":
        """The same request of another model alone."""
        return replace(self, model=model, ensemble=())

    @property
    def override_values(self) -> dict[str, Any]:
        """{"exit_policy": "confidence"} for the override exit_policy=confidence; values are read as YAML.

        Raises:
            UserError: an override is not NAME=VALUE or its value is not YAML.
        """
        values = {}
        for override in self.overrides:
            name, equals, value = override.partition("=")
            if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or "/" in value:
                raise UserError(f"--override {override}: must be NAME=VALUE, such as exit_policy=confidence")
            try:
                values[name] = None if value == "None" else yaml.safe_load(value)  # as --model-overrides writes it
            except yaml.YAMLError:
                raise UserError(f"--override {override}: {value!r} is no value in YAML") from None
        return values

    def _settings(self) -> list[tuple[str, str]]:
        """Checkpoint and search where they are not the default: [("average", "5"), ("beam", "1")]."""
        numbers = {"average": self.average, "beam": self.beam, "lenpen": self.lenpen}
        settings = [(name, f"{value:g}") for name, value in numbers.items() if value is not None]
        if self.average is None and self.checkpoint != "best":
            settings.insert(0, ("checkpoint", self.checkpoint))
        return settings

    def output_name(self, *parts: str) -> str:
        """A name for what is made of this request: ("evaluation", "valid") → "evaluation-valid-average-5".

        Different requests have different names. One of more than `LONGEST_NAME` bytes ends in a digest of the rest.
        """
        settings = [f"{name}-{value}".removeprefix("checkpoint-") for name, value in self._settings()]
        name = "-".join([*parts, *settings, *self.overrides]).encode()
        if len(name) > LONGEST_NAME:
            digest = hashlib.sha256(name).hexdigest()[:16]
            name = name[: LONGEST_NAME - len(digest) - 1] + f"-{digest}".encode()
        return name.decode(errors="ignore")

    def command(self, script: str, overrides: Sequence[str] = ()) -> str:
        """The command line of another recipe for the same models, checkpoint and search, with more `overrides`."""
        words = [word for name, value in self._settings() for word in (f"--{name}", value)]
        words += ["--cpu"] if self.cpu else []
        for override in (*self.overrides, *overrides):
            words += ["--override", override]
        words += ["--ensemble", *self.ensemble] if self.ensemble else []
        return " ".join([self.run_command(script), *([shlex.join(words)] if words else [])])

    def run_command(self, script: str) -> str:
        """The command line of another recipe for the same corpus, model and folders."""
        return commands.recipe_call(script, corpus=self.corpus, model=self.model, data=self.data, runs=self.runs)
