"""sentences.jsonl: what an evaluation knows of each sentence, so that it can be scored again without decoding."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.metrics import quality
from thoth_core.errors import UserError

NAME = "sentences.jsonl"


@dataclass(frozen=True)
class Sentence:
    """One sentence of a test set. `pieces` are the sub-words that the model wrote, without the end of sentence."""

    number: int  # from 1
    source: str
    reference: str
    hypothesis: str
    hypothesis_tokens: str | None  # what BLEU of tokens compares, separated by spaces; None where it is not measured
    reference_tokens: str | None
    talk: str | None
    score: float  # the model's: log-probability in nats, divided by length ** lenpen
    pieces: list[str]
    bleu: float
    chrf: float


def sentence_scores(
    hypotheses: Sequence[str], references: Sequence[str], signatures: Mapping[str, str]
) -> list[tuple[float, float]]:
    """(BLEU, chrF2) of each sentence, by sacreBLEU's sentence scores with the settings of `signatures`.

    As in sacreBLEU's sentence-level mode, BLEU of a sentence counts only the orders of n-grams that it is long enough
    for (eff:yes). The mean of either is not the score of the corpus.
    """
    metrics = quality.metrics_of({name: signatures[name] for name in ("bleu", "chrf")})
    metrics["bleu"].effective_order = True
    found = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        bleu, chrf = (metrics[name].sentence_score(hypothesis, [reference]).score for name in ("bleu", "chrf"))
        found.append((bleu, chrf))
    return found


def lines(sentences: Sequence[Sentence]) -> list[str]:
    """A JSON object each; what a sentence does not have, a talk or tokens, is left out."""
    objects = ({k: v for k, v in asdict(sentence).items() if v is not None} for sentence in sentences)
    return [json.dumps(found, ensure_ascii=False) for found in objects]


def read(folder: Path, count: int) -> list[Sentence]:
    """The sentences of an evaluation, which has `count`; a UserError if they are missing or damaged."""
    path = folder / NAME
    again = "evaluate anew (recipes/evaluate.sh)"
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {again}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {again}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {again}") from None
    found = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        sentence = _parse(line)
        if sentence is None:
            raise UserError(f"{path}: line {number} is damaged; {again}")
        if sentence.number != number:
            raise UserError(f"{path}: line {number} holds sentence {sentence.number}; {again}")
        found.append(sentence)
    if len(found) != count:
        raise UserError(f"{path}: {len(found):,} sentences, but scores.json is of {count:,}; {again}")
    return found


def _parse(line: str) -> Sentence | None:
    """The sentence in a line; None if it is damaged."""
    optional = ("hypothesis_tokens", "reference_tokens", "talk")
    kinds: dict[str, Any] = {"number": int, "pieces": list} | dict.fromkeys(optional, (str, type(None)))
    kinds |= dict.fromkeys(("source", "reference", "hypothesis"), str) | dict.fromkeys(("score", "bleu", "chrf"), float)
    try:
        values = {**dict.fromkeys(optional), **json.loads(line)}
    except (ValueError, TypeError):
        return None
    sound = values.keys() == kinds.keys() and all(isinstance(values[name], kind) for name, kind in kinds.items())
    if not sound or not all(isinstance(piece, str) for piece in values["pieces"]):
        return None
    if not all(math.isfinite(values[name]) for name in ("score", "bleu", "chrf")):  # Python reads NaN; browsers do not
        return None
    return Sentence(**values)
