"""Byte-pair encoding of Moses' tokens by subword-nmt (Sennrich, Haddow and Birch 2016, arXiv 1508.07909).

What is learned and written here equals what subword-nmt's commands (learn-bpe, apply-bpe, get-vocab) write, to the
byte. "Words" are Moses' tokens here, and a token that does not end its word ends in @@.
"""

import io
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr
from functools import cache
from unittest import mock

from subword_nmt import apply_bpe, get_vocab, learn_bpe

from recipes.console.messages import progress, warn
from thoth_core.errors import UserError

CONTINUED = "@@"


def learn(lines: Iterable[str], operations: int) -> str:
    """The text of a file of merges: at most `operations` of them, learned from the words in `lines`.

    Warns if the text has fewer.

    Raises:
        UserError: the text has nothing to merge.
    """
    written, terminal = io.StringIO(), sys.stderr
    # subword-nmt draws a progress bar even where there is no terminal, and ends with a message of its own.
    steps = mock.patch.object(
        learn_bpe, "tqdm", lambda numbers: progress(numbers, "learning merges", operations, terminal)
    )
    try:
        with steps, redirect_stderr(io.StringIO()):
            learn_bpe.learn_bpe(lines, written, operations)
    except ValueError:  # the maximum of no pair
        raise UserError(f"subwords.operations {operations}: no word of the training text has two letters") from None
    codes = written.getvalue()
    if (learned := codes.count("\n") - 1) < operations:
        warn(f"subwords.operations {operations:,}: the training text has only {learned:,} pairs that occur twice")
    return codes


def vocabulary(lines: Iterable[str]) -> str:
    """The text of a vocabulary file: each token in `lines` with its frequency, the most frequent first."""
    written = io.StringIO()
    get_vocab.get_vocab(lines, written)
    return written.getvalue()


class Merges:
    """Segmentation of words by the merges of `learn`. Merges that lead out of a vocabulary are undone."""

    def __init__(self, codes: str, vocabulary: str | None = None, threshold: int | None = None) -> None:
        """`vocabulary`: a text by the function of that name, without its tokens rarer than `threshold`."""
        known = None if vocabulary is None else apply_bpe.read_vocabulary(io.StringIO(vocabulary), threshold)
        merges = apply_bpe.BPE(io.StringIO(codes), vocab=known)
        # Words recur. subword-nmt has a cache of its own, which it searches in slower Python.
        self._tokens = cache(lambda word: " ".join(merges.segment_tokens([word])))

    def __call__(self, line: str) -> str:
        """The tokens of a line of words, which are separated by single spaces. Spaces around the line stay."""
        return " ".join(map(self._tokens, line.split(" ")))


def joined(line: str) -> str:
    """The words of a line of tokens. A line that breaks off within a word ends there."""
    return f"{line} ".replace(f"{CONTINUED} ", "").rstrip(" ")
