"""Model files (recipes/models/NAME.yaml): their schema, loading, and the plugin that a model needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from recipes.config.schema import Settings, find, read_yaml
from recipes.storage.provenance import ROOT
from thoth_core.errors import UserError

OptionValue = str | int | float | bool | None
Options = dict[str, OptionValue]  # by name without dashes; true is a bare flag, false and null are an absent option
OptionBlock = Literal["train", "generate"]

_Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        description="an option's name without dashes in front, e.g. max-tokens",
    ),
]
_Value = Annotated[OptionValue, Field(description="text, a number, true, false or null")]
_Options = dict[_Name, _Value]
_OPTIONS = "a block of options without dashes in front"


class CorpusOverrides(Settings):
    """The options of a model that differ for one corpus."""

    train: _Options = Field(default={}, description=_OPTIONS)
    generate: _Options = Field(default={}, description=_OPTIONS)


class ModelSettings(Settings):
    """A model file. Whether fairseq-train knows an option of `train` is for fairseq to say."""

    description: str
    user_dir: str | None = None
    train: _Options = Field(description="a block of fairseq-train options without dashes in front")
    generate: _Options = Field(default={}, description=_OPTIONS)
    corpora: dict[str, CorpusOverrides] = Field(
        default={}, description="a block CORPUS: {train: {...}, generate: {...}}"
    )


@dataclass(frozen=True)
class ModelFile:
    """A model file with its settings."""

    path: Path
    settings: ModelSettings

    @property
    def name(self) -> str:
        return self.path.stem

    def options(self, block: OptionBlock, corpus: str) -> Options:
        """The options of `block` with what the file overrides for `corpus`."""
        overrides = self.settings.corpora.get(corpus, CorpusOverrides())
        return getattr(self.settings, block) | getattr(overrides, block)

    @property
    def plugin(self) -> Path | None:
        """The folder of the model's plugin: below the checkout, or an absolute path. None for models of fairseq.

        Raises:
            UserError: there is no plugin in that folder.
        """
        if self.settings.user_dir is None:
            return None
        folder = ROOT / self.settings.user_dir
        if not (folder / "__init__.py").is_file():
            raise UserError(
                f"{self.path}: user_dir {self.settings.user_dir!r} is no plugin: {folder}/__init__.py is missing"
            )
        return folder


def load_model(name: str) -> ModelFile:
    """The model file that `name` means (see `find`)."""
    path = find("model", name)
    settings = ModelSettings.checked(read_yaml(path), str(path))
    if "arch" not in settings.train:
        raise UserError(f"{path}: key 'train.arch' is missing; name the architecture to train, e.g. transformer")
    return ModelFile(path, settings)
