"""corpus.json, which describes a prepared corpus: what it was made from, and the checksum of each of its files."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from recipes.storage.records import Record


def _is_none(value: object) -> bool:
    return value is None


class SentencepieceSubwords(Record):
    """Sub-word segmentation by sentencepiece models."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    model: str  # the algorithm: bpe or unigram
    joint: bool  # whether both languages share one model
    vocab_size: int
    models: dict[str, str]  # the model file of each language
    # The corpus that the models were taken from. Absent: they were learned from this one's training text.
    of: str | None = Field(default=None, exclude_if=_is_none)


class BpeSubwords(Record):
    """Sub-word segmentation of Moses' tokens by subword-nmt."""

    kind: Literal["subword-nmt"] = "subword-nmt"
    operations: int
    joint: bool
    lowercase: bool
    vocabulary_threshold: int | None
    models: dict[str, str]  # the file of merges of each language
    vocabularies: dict[str, str]  # the vocabulary file of each language; empty without a threshold
    of: str | None = Field(default=None, exclude_if=_is_none)


Subwords = Annotated[SentencepieceSubwords | BpeSubwords, Field(discriminator="kind")]


class SplitCounts(Record):
    """Sentence pairs of one split."""

    model_config = ConfigDict(populate_by_name=True)

    available: int = Field(validation_alias="read", serialization_alias="read")
    kept: int
    dropped: dict[str, int]  # by reason
    taken: int | None = Field(  # from the training text as validation set; absent: none
        default=None,
        exclude_if=_is_none,
        validation_alias="taken for valid",
        serialization_alias="taken for valid",
    )


class CorpusRecord(Record):
    """The content of corpus.json."""

    name: str
    source: str
    target: str
    subwords: Subwords
    splits: dict[str, SplitCounts]
    tests: dict[str, str]  # the title of each test split
    leaks: dict[str, int]  # by split, the source sentences that occur in the training text, where any do
    fingerprint: str  # of the raw inputs and of the settings
    versions: dict[str, str]  # of the packages that made the files
    files: dict[str, str]  # SHA-256 by path

    @model_validator(mode="after")
    def _check_languages(self) -> Self:
        if not {self.source, self.target} <= {*self.subwords.models}:
            raise ValueError(f"subwords.models must have the languages {self.source} and {self.target}")
        return self
