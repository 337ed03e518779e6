"""Normalisation of characters and spaces, which the cleaning of text and sentencepiece's models share."""

import re
import unicodedata

# Invisible characters that carry no text: soft hyphen, zero-width space, word joiner, byte order mark.
# Zero-width joiners stay: Indic scripts, Persian and emoji need them.
_INVISIBLE = "\u00ad\u200b\u2060\ufeff"
_CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()]
# U+2581 marks a space inside sentencepiece; in text it would come back as one.
REPLACED: dict[str, str] = dict.fromkeys((*_CONTROLS, *_INVISIBLE), "") | {"\u2581": "_"}
SPACES: tuple[str, ...] = tuple(chr(code) for code in range(0x3001) if chr(code).isspace() and chr(code) != " ")

_TABLE = str.maketrans(REPLACED)
_TO_REPLACE = re.compile("[" + re.escape("".join(REPLACED)) + "]")


def normalise(line: str) -> str:
    """`line` in Unicode form NFC, without control and invisible characters, with single spaces between words.

    Nothing visible changes, so that the result can be compared with detokenised text.
    """
    if _TO_REPLACE.search(line):
        line = line.translate(_TABLE)
    return " ".join(unicodedata.normalize("NFC", line).split())
