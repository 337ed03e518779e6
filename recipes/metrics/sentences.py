"""sentences.jsonl: each sentence of an evaluation, so that it can be scored again without decoding."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import AliasChoices, ConfigDict, Field

from recipes.metrics import quality, results
from recipes.storage.records import Record
from thoth_core.errors import UserError

NAME = "sentences.jsonl"


class Sentence(Record):
    """A line of sentences.jsonl. Fields that are None are left out of the file."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    number: int  # from 1
    source: str
    reference: str
    hypothesis: str
    # The Moses tokens that BLEU of tokens compares, separated by spaces; None where it is not measured.
    hypothesis_tokens: str | None = None
    reference_tokens: str | None = None
    # The document that the sentence is of; "talk" in older files. None for a corpus without documents.
    document: str | None = Field(default=None, validation_alias=AliasChoices("document", "talk"))
    score: float  # log-probability in nats, divided by length ** lenpen
    # The tokens that the model wrote, without the end of sentence. The key in the file is "pieces".
    tokens: list[str] = Field(validation_alias="pieces", serialization_alias="pieces")
    bleu: float
    chrf: float

    def line(self) -> str:
        return self.model_dump_json(exclude_none=True)


def sentence_scores(
    hypotheses: Sequence[str], references: Sequence[str], signatures: Mapping[str, str]
) -> list[tuple[float, float]]:
    """(BLEU, chrF2) of each sentence, by sacreBLEU's sentence scores with the settings of `signatures`.

    As in sacreBLEU's sentence-level mode, BLEU of a sentence counts only the orders of n-grams that it is long enough
    for (eff:yes). The average of either over sentences is not the score of the corpus.
    """
    metrics = quality.metrics_of({name: signatures[name] for name in ("bleu", "chrf")})
    metrics["bleu"].effective_order = True
    scores = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        bleu, chrf = (metrics[name].sentence_score(hypothesis, [reference]).score for name in ("bleu", "chrf"))
        scores.append((bleu, chrf))
    return scores


def text(sentences: Sequence[Sentence]) -> str:
    """The content of sentences.jsonl."""
    return "".join(f"{sentence.line()}\n" for sentence in sentences)


def read(folder: Path, count: int) -> list[Sentence]:
    """The sentences of the evaluation in `folder`, which has `count`.

    Raises:
        UserError: the file is missing or damaged, or has another number of sentences.
    """
    path = folder / NAME
    sentences = Sentence.read_lines(path, remedy=results.AGAIN)
    for number, sentence in enumerate(sentences, 1):
        if sentence.number != number:
            raise UserError(f"{path}: line {number} holds sentence {sentence.number}; {results.AGAIN}")
    if len(sentences) != count:
        raise UserError(f"{path}: {len(sentences):,} sentences, but {results.NAME} has {count:,}; {results.AGAIN}")
    return sentences
