"""exits.jsonl and alignments.jsonl: what a model reports about its decoding of each sentence.

Both lie in the folder of an evaluation, with one JSON object per line.
"""

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from recipes.storage.records import Record

EXITS_FILE = "exits.jsonl"
ALIGNMENTS_FILE = "alignments.jsonl"


class SentenceExits(Record):
    """A line of exits.jsonl: the tokens that the decoder wrote and the block after which each of them left it."""

    model_config = ConfigDict(populate_by_name=True)

    # T tokens after sub-word segmentation, the end of sentence last. The key in the file is "pieces".
    tokens: list[str] = Field(validation_alias="pieces", serialization_alias="pieces")
    exits: list[int]  # T decoder blocks, counted from 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.exits) != len(self.tokens):
            raise ValueError(f"{len(self.exits)} exits for {len(self.tokens)} tokens")
        if min(self.exits, default=1) < 1:
            raise ValueError("exits are counted from 1")
        return self


class SentenceAlignment(Record):
    """A line of alignments.jsonl: how much each target word looked at each source word."""

    number: int = Field(ge=1)  # of the sentence, counted from 1
    source: list[str]  # S words, the end of sentence last
    target: list[str]  # T words
    weights: list[list[float]]  # T rows of S weights

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [len(row) for row in self.weights] != [len(self.source)] * len(self.target):
            raise ValueError(f"weights must be {len(self.target)} rows of {len(self.source)} numbers")
        return self
