"""Moses' tokenisation, lower case and byte-pair encoding: the preparation on which most papers report BLEU."""

from collections.abc import Sequence

from recipes.tokenization import moses
from recipes.tokenization.bpe import CONTINUED, Merges, joined


class MosesBpe:
    """A `recipes.tokenization.subwords.Segmenter` by Moses' rules and learned merges."""

    def __init__(self, language: str, merges: Merges, *, lowercase: bool) -> None:
        self.language = language
        self.lowercase = lowercase
        self._merges = merges

    def _moses_tokens(self, line: str) -> str:
        tokens = moses.tokenise(line, self.language)
        return (moses.lowercase(tokens) if self.lowercase else tokens).strip()

    def segment(self, line: str) -> list[str]:
        return self._merges(self._moses_tokens(line)).split()

    def text(self, tokens: Sequence[str]) -> str:
        return moses.detokenise(joined(" ".join(tokens)), self.language)

    def marked(self, tokens: Sequence[str]) -> list[str]:
        marked, begins_word = [], True
        for token in tokens:
            marked.append("▁" * begins_word + moses.unescape(token.removesuffix(CONTINUED)))
            begins_word = not token.endswith(CONTINUED)
        return marked

    def scored(self, tokens: Sequence[str], reference: str) -> tuple[str, str]:
        return joined(" ".join(tokens)), self._moses_tokens(reference)
