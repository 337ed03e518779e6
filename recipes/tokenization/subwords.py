"""Sub-word segmentation by sentencepiece, and back to text (by Moses and BPE: `recipes.tokenization.moses_bpe`).

A sentencepiece model is learned from the training text, the same to the byte on every run. It carries the same
normalisation of spaces and invisible characters as `recipes.data.cleaning`, so raw text may be given to it; otherwise
text is left as it is, and decode(encode(text)) is the cleaned text again.
"""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import sentencepiece

from recipes.data.cleaning import REPLACED, SPACES
from thoth_core.errors import UserError

if TYPE_CHECKING:
    from recipes.tokenization.bpe import Merges

# The result of `unigram` depends on how many threads share the work: the same number on every machine.
THREADS = 4


def train(lines: Iterable[str], *, vocab_size: int, model: str, character_coverage: float, split_digits: bool) -> bytes:
    """A sentencepiece model ("bpe" or "unigram") of exactly `vocab_size` pieces, as the bytes of its file.

    `UserError` if the text is too small or has too many characters for that size.
    """
    written = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        # The model file records the path of the rules: a relative one, to be the same in every run.
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
        # A NUL ends text inside sentencepiece, and a file of text that has one is refused before.
        for character, replacement in rules.items()
        if character != "\0"
    )
    return "\n".join(lines) + "\n"


def _explained(message: str, vocab_size: int) -> str:
    option = f"subwords.vocab_size {vocab_size}"
    if found := re.search(r"Vocabulary size too high .* value <= (\d+)", message):
        return f"{option} is too large for this training text; give --vocab-size {found[1]} or less"
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"{option} is too small for this text's characters; give --vocab-size {found[1]} or more"
    return f"{option}: sentencepiece cannot learn from this training text ({' '.join(message.split())})"


class Subwords(Protocol):
    """Plain text of one language to the pieces that a model reads, and back."""

    lowercase: bool  # whether text comes back in lower case

    def pieces(self, line: str) -> list[str]:
        """The pieces of a line of plain text."""

    def text(self, pieces: Sequence[str]) -> str:
        """Pieces as plain text of one line."""

    def marked(self, pieces: Sequence[str]) -> list[str]:
        """The pieces as people read them, with ▁ before the first one of each word."""

    def scored(self, pieces: Sequence[str], reference: str) -> tuple[str, str] | None:
        """A hypothesis and its reference, plain text, as the tokens that papers score; None if there are none."""


def load(block: Mapping[str, Any], folder: Path, language: str) -> Subwords:
    """What the `block` "subwords" of corpus.json in `folder` says of `language`."""
    if block["kind"] == "sentencepiece":
        return Encoder((folder / block["models"][language]).read_bytes())
    from recipes.tokenization.moses_bpe import MosesBpe

    return MosesBpe(language, merges(block, folder, language), lowercase=block["lowercase"])


def merges(block: Mapping[str, Any], folder: Path, language: str) -> "Merges":
    """Those of subword-nmt, which cut tokens, that the `block` "subwords" of corpus.json in `folder` tells."""
    from recipes.tokenization.bpe import Merges

    codes = (folder / block["models"][language]).read_text(encoding="utf-8")
    known = block["vocabularies"].get(language)
    vocabulary = None if known is None else (folder / known).read_text(encoding="utf-8")
    return Merges(codes, vocabulary, block["vocabulary_threshold"])


class Encoder:
    """`Subwords` by a sentencepiece model given as bytes."""

    lowercase = False

    def __init__(self, model: bytes) -> None:
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)

    def pieces(self, line: str) -> list[str]:
        return list(self._processor.encode(line, out_type=str))

    def text(self, pieces: Sequence[str]) -> str:
        return " ".join(self._processor.decode(list(pieces)).split())

    def marked(self, pieces: Sequence[str]) -> list[str]:
        return list(pieces)

    def scored(self, pieces: Sequence[str], reference: str) -> None:
        return None

    def __call__(self, lines: list[str], *, chunk: int = 10_000) -> Iterator[str]:
        """The pieces of each line, separated by spaces."""
        for start in range(0, len(lines), chunk):
            for pieces in self._processor.encode(lines[start : start + chunk], out_type=str, num_threads=THREADS):
                yield " ".join(pieces)

    def vocabulary(self) -> str:
        """The text of sentencepiece's .vocab file: a piece, a tab and its score a line."""
        processor = self._processor
        return "".join(
            f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in range(processor.get_piece_size())
        )
