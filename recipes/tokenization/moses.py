"""Moses' tokenisation (tokenizer.perl without options), lowercasing (lowercase.perl) and detokenisation.

The rules and abbreviations are those of sacremoses. Where they differ from the Perl scripts, the rules of the scripts
replace them, without the later rule that splits the full stop off an abbreviation at the end of a line.

- Letters, digits and lower case are Unicode's (the Perl's IsAlnum, IsAlpha, IsN, IsLower). sacremoses has tables of an
  old Unicode without Chinese characters and Hangul, and adds signs of Indic scripts.
- Finnish, Swedish, Catalan, Tetun, Irish and Somali have rules of their own.
- Control characters are removed, also those that Python takes for spaces. A line of spaces alone stays as it is.
- For an abbreviation that is listed twice, the last line counts. One with a space at its end is ignored.
"""

from functools import cache
from typing import Any

import regex
from sacremoses import MosesDetokenizer, MosesTokenizer
from sacremoses.corpus import NONBREAKING_PREFIXES

_ALPHA, _DIGIT = r"\p{Alphabetic}", r"\p{N}"
_OTHER = (
    r"[^\p{Alphabetic}\p{Nd}\s.'`,\-%s]"  # tokens of their own; %s: characters that may be inside words in a language
)
_NOT_BEFORE_LOWER = r"(?=$|[^\p{Ll}])"

# Characters that become tokens of their own, for languages where these are not all but letters, digits and .'`,-
_ALONE = {
    "fi": _OTHER % ":" + "|:" + _NOT_BEFORE_LOWER,
    "sv": _OTHER % ":" + "|:" + _NOT_BEFORE_LOWER,
    "ca": _OTHER % "·",  # the Perl means to split some of these off, but compares bytes with characters
    "tdt": _OTHER % "" + "|'" + _NOT_BEFORE_LOWER,
}

_BETWEEN_OTHERS = regex.compile(rf"([^{_ALPHA}])'([^{_ALPHA}])"), r"\1 ' \2"
_BEFORE_A_LETTER = regex.compile(rf"([^{_ALPHA}])'([{_ALPHA}])"), r"\1 ' \2"
_AFTER_A_LETTER = regex.compile(rf"([{_ALPHA}])'([^{_ALPHA}])"), r"\1 ' \2"
_ELISION = regex.compile(rf"([{_ALPHA}])'([{_ALPHA}])"), r"\1' \2"
_APOSTROPHES: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("fr", "it", "ga", "ca"), (_BETWEEN_OTHERS, _BEFORE_A_LETTER, _AFTER_A_LETTER, _ELISION)
)
_APOSTROPHES |= dict.fromkeys(("so", "tdt"), (_BETWEEN_OTHERS, _BEFORE_A_LETTER, _AFTER_A_LETTER))

_STARTS_LOWER = regex.compile(r"\p{Lowercase}")
_HAS_LETTER = regex.compile(_ALPHA)
_SPACES = regex.compile(r"\s*")


class _Rules(MosesTokenizer):
    """sacremoses' tokeniser with the rules of the Perl script in place of those that differ."""

    DEDUPLICATE_SPACE = regex.compile(r"\s+"), " "  # Python's re takes U+001C to U+001F for spaces
    COMMA_SEPARATE_1 = regex.compile(rf"([^{_DIGIT}]),"), r"\1 , "
    COMMA_SEPARATE_2 = regex.compile(rf",([^{_DIGIT}])"), r" , \1"
    COMMA_SEPARATE_3 = regex.compile(rf"({_DIGIT}),$"), r"\1 , "
    ENGLISH_SPECIFIC_APOSTROPHE = (
        _BETWEEN_OTHERS,
        (regex.compile(rf"([^{_ALPHA}{_DIGIT}])'([{_ALPHA}])"), r"\1 ' \2"),
        _AFTER_A_LETTER,
        (regex.compile(rf"([{_ALPHA}])'([{_ALPHA}])"), r"\1 '\2"),
        (regex.compile(rf"({_DIGIT})'(s)"), r"\1 '\2"),
    )

    def __init__(self, language: str) -> None:
        super().__init__("en")
        if language in _APOSTROPHES:
            self.lang, self.FR_IT_SPECIFIC_APOSTROPHE = "fr", _APOSTROPHES[language]
        else:
            self.lang = language
        self.PAD_NOT_ISALNUM = regex.compile(f"({_ALONE.get(language, _OTHER % '')})"), r" \1 "
        kinds = _abbreviations(language)
        self.NONBREAKING_PREFIXES = set(kinds)
        self.NUMERIC_ONLY_PREFIXES = {prefix for prefix, numeric in kinds.items() if numeric}

    def islower(self, text: str) -> bool:
        return _STARTS_LOWER.match(text) is not None

    def isanyalpha(self, text: str) -> bool:
        return _HAS_LETTER.search(text) is not None


def _abbreviations(language: str) -> dict[str, bool]:
    """The abbreviations that keep their full stop, and whether only before a number. English is the default."""
    lists = NONBREAKING_PREFIXES
    kinds = {}
    for line in lists.get(f"nonbreaking_prefix.{language}", lists["nonbreaking_prefix.en"]).split("\n"):
        if line and not line.startswith("#"):
            numeric = regex.match(r"(.*)\s+#NUMERIC_ONLY#", line)
            kinds[numeric[1] if numeric else line] = numeric is not None
    return kinds


@cache
def _rules(language: str) -> _Rules:
    return _Rules(language)


@cache
def _detokeniser(language: str) -> MosesDetokenizer:
    return MosesDetokenizer("de" if language == "cs" else language)  # sacremoses fails at some Czech contractions


def tokenise(line: str, language: str, *, escape: bool = True) -> str:
    """The tokens of `line`, separated by spaces; `escape` writes & | < > ' " [ ] as XML does (&amp;)."""
    if _SPACES.fullmatch(line):
        return line
    return _rules(language.split("_")[0]).tokenize(line, return_str=True, escape=escape)


def lowercase(line: str) -> str:
    """`line` in lower case, character by character. Python's own lower() writes a Greek sigma at a word's end as ς."""
    return line.replace("Σ", "σ").lower()


def detokenise(tokens: str, language: str) -> str:
    """Plain text from tokens, as far as rules can restore it. What `tokenise` escaped is unescaped."""
    return _detokeniser(language.split("_")[0]).detokenize(tokens.split(" "))


def unescape(token: str) -> str:
    """A token as it was before `tokenise` escaped it."""
    return str(_detokeniser("en").unescape_xml(token))
