"""Byte-pair encoding of tokens by subword-nmt (Sennrich, Haddow and Birch 2016, arXiv 1508.07909).

What is learned and written here equals what its command line (learn-bpe, apply-bpe, get-vocab) writes, to the byte. A
piece that does not end its word ends in @@.
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
    """The text of a file of codes: up to so many merges, learned from the tokens in `lines`.

    Warns if the text has fewer; `UserError` if it has none.
    """
    written, terminal = io.StringIO(), sys.stderr
    # In the place of subword-nmt's bar, which is drawn even where there is no terminal, and of its last words.
    steps = mock.patch.object(
        learn_bpe, "tqdm", lambda numbers: progress(numbers, "learning sub-words", operations, terminal)
    )
    try:
        with steps, redirect_stderr(io.StringIO()):
            learn_bpe.learn_bpe(lines, written, operations)
    except ValueError:  # it takes the maximum of no pair
        raise UserError(f"subwords.operations {operations}: no word of the training text has two letters") from None
    codes = written.getvalue()
    if (found := codes.count("\n") - 1) < operations:
        warn(f"subwords.operations {operations:,}: the training text has {found:,} pairs to merge that occur twice")
    return codes


def vocabulary(lines: Iterable[str]) -> str:
    """The text of a vocabulary file: each piece in `lines` and how often it occurs, the most frequent first."""
    written = io.StringIO()
    get_vocab.get_vocab(lines, written)
    return written.getvalue()


class Merges:
    """Tokens to pieces by the codes that `learn` gave; merges that lead out of a vocabulary are undone."""

    def __init__(self, codes: str, vocabulary: str | None = None, threshold: int | None = None) -> None:
        """`vocabulary`: as by the function of that name; pieces rarer than `threshold` are none of it."""
        known = None if vocabulary is None else apply_bpe.read_vocabulary(io.StringIO(vocabulary), threshold)
        merges = apply_bpe.BPE(io.StringIO(codes), vocab=known)
        # Words recur: subword-nmt, which caches too, looks at each of them in Python.
        self._pieces = cache(lambda word: " ".join(merges.segment_tokens([word])))

    def __call__(self, tokens: str) -> str:
        """The pieces of a line of tokens, which are separated by single spaces; spaces around it stay."""
        return " ".join(map(self._pieces, tokens.split(" ")))


def joined(pieces: str) -> str:
    """The tokens that a line of pieces stands for; one that breaks off within a word ends there."""
    return f"{pieces} ".replace(f"{CONTINUED} ", "").rstrip(" ")
