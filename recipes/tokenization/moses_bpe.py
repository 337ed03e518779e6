"""The preparation `paper`: Moses tokenisation, lower case, byte-pair encoding; what most papers report BLEU on."""

from collections.abc import Sequence

from recipes.tokenization import moses
from recipes.tokenization.bpe import CONTINUED, Merges, joined


class MosesBpe:
    """`recipes.subwords.Subwords` of one language by Moses' rules and the merges that were learned."""

    def __init__(self, language: str, merges: Merges, *, lowercase: bool) -> None:
        self.language = language
        self.lowercase = lowercase
        self._merges = merges

    def _tokens(self, line: str) -> str:
        tokens = moses.tokenise(line, self.language)
        return (moses.lowercase(tokens) if self.lowercase else tokens).strip()

    def pieces(self, line: str) -> list[str]:
        return self._merges(self._tokens(line)).split()

    def text(self, pieces: Sequence[str]) -> str:
        return moses.detokenise(joined(" ".join(pieces)), self.language)

    def marked(self, pieces: Sequence[str]) -> list[str]:
        found, begins = [], True
        for piece in pieces:
            inside = piece.endswith(CONTINUED)
            found.append("▁" * begins + moses.unescape(piece.removesuffix(CONTINUED)))
            begins = not inside
        return found

    def scored(self, pieces: Sequence[str], reference: str) -> tuple[str, str]:
        return joined(" ".join(pieces)), self._tokens(reference)
