"""Sub-word segmentation of one language of a prepared corpus: text to the tokens of a model, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from recipes.storage.corpus_record import BpeSubwords, Subwords
from recipes.tokenization.bpe import Merges
from recipes.tokenization.moses_bpe import MosesBpe
from recipes.tokenization.sentencepiece_model import SentencepieceModel


class Segmenter(Protocol):
    """Plain text of one language to the tokens that a model reads and writes, and back."""

    lowercase: bool  # whether text comes back in lower case

    def segment(self, line: str) -> list[str]:
        """The tokens of a line of plain text."""

    def text(self, tokens: Sequence[str]) -> str:
        """Plain text of one line from tokens."""

    def marked(self, tokens: Sequence[str]) -> list[str]:
        """The tokens as people read them, with ▁ before the first token of each word."""

    def scored(self, tokens: Sequence[str], reference: str) -> tuple[str, str] | None:
        """A hypothesis and its reference (plain text) as the Moses tokens that papers score; None without Moses."""


def load_segmenter(subwords: Subwords, folder: Path, language: str) -> Segmenter:
    """The segmentation of `language` in the corpus `folder`, whose corpus.json has the block `subwords`."""
    if isinstance(subwords, BpeSubwords):
        return MosesBpe(language, load_merges(subwords, folder, language), lowercase=subwords.lowercase)
    return SentencepieceModel((folder / subwords.models[language]).read_bytes())


def load_merges(subwords: BpeSubwords, folder: Path, language: str) -> Merges:
    """The byte-pair merges of `language` in the corpus `folder`, which segment Moses' tokens."""
    codes = (folder / subwords.models[language]).read_text(encoding="utf-8")
    name = subwords.vocabularies.get(language)
    vocabulary = None if name is None else (folder / name).read_text(encoding="utf-8")
    return Merges(codes, vocabulary, subwords.vocabulary_threshold)
