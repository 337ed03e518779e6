"""Sub-word segmentation of plain text by sentencepiece (Kudo and Richardson 2018, arXiv 1808.06226).

A model is learned from the training text and is the same to the byte in every run. It contains the normalisation of
`recipes.tokenization.normalisation`, so that raw text may be given to it. Otherwise text is left as it is: decoding the
tokens gives back the normalised text.
"""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from recipes.tokenization.normalisation import REPLACED, SPACES
from thoth_core.errors import UserError

# The result of `unigram` depends on how many threads share the work, so that the number is the same on every machine.
THREADS = 4


def train(lines: Iterable[str], *, vocab_size: int, model: str, character_coverage: float, split_digits: bool) -> bytes:
    """A sentencepiece model ("bpe" or "unigram") with a vocabulary of exactly `vocab_size`: the bytes of its file.

    Raises:
        UserError: the text is too small, or has too many different characters, for that vocabulary.
    """
    written = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        # The model file records the path of the rules. A relative path is the same in every run.
        Path("normalisation.tsv").write_text(_normalisation_rules(), encoding="utf-8")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=written,
                vocab_size=vocab_size,
                model_type=model,
                character_coverage=character_coverage,
                split_digits=split_digits,
                byte_fallback=False,
                normalization_rule_tsv="normalisation.tsv",
                max_sentence_length=10**6,
                num_threads=THREADS,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(_explained(str(error), vocab_size)) from None
    return written.getvalue()


def _normalisation_rules() -> str:
    """sentencepiece's rule file: code points in hexadecimal, a tab, the code points that replace them."""
    rules = dict.fromkeys(SPACES, " ") | REPLACED
    lines = (
        f"{ord(character):X}\t{' '.join(f'{ord(c):X}' for c in replacement)}"
        # A NUL ends a text inside sentencepiece. Readers of text files refuse it.
        for character, replacement in rules.items()
        if character != "\0"
    )
    return "\n".join(lines) + "\n"


def _explained(message: str, vocab_size: int) -> str:
    option = f"subwords.vocab_size {vocab_size}"
    if limit := re.search(r"Vocabulary size too high .* value <= (\d+)", message):
        return f"{option} is too large for this training text; give --vocab-size {limit[1]} or less"
    if limit := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"{option} is too small for this text's characters; give --vocab-size {limit[1]} or more"
    return f"{option}: sentencepiece cannot learn from this training text ({' '.join(message.split())})"


class SentencepieceModel:
    """A `recipes.tokenization.subwords.Segmenter` by the bytes of a model file."""

    lowercase = False

    def __init__(self, model: bytes) -> None:
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)

    def segment(self, line: str) -> list[str]:
        return list(self._processor.encode(line, out_type=str))

    def segment_all(self, lines: list[str], *, chunk: int = 10_000) -> Iterator[str]:
        """The tokens of each line, separated by spaces."""
        for start in range(0, len(lines), chunk):
            for tokens in self._processor.encode(lines[start : start + chunk], out_type=str, num_threads=THREADS):
                yield " ".join(tokens)

    def text(self, tokens: Sequence[str]) -> str:
        return " ".join(self._processor.decode(list(tokens)).split())

    def marked(self, tokens: Sequence[str]) -> list[str]:
        return list(tokens)

    def scored(self, tokens: Sequence[str], reference: str) -> None:
        return None

    def vocabulary(self) -> str:
        """The text of sentencepiece's .vocab file: on each line a token, a tab and its score."""
        processor = self._processor
        return "".join(
            f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in range(processor.get_piece_size())
        )
