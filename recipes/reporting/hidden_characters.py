"""Control and format characters made visible, so that nothing in a text can hide, reverse or break a page."""

import unicodedata
from collections.abc import Iterator

from markupsafe import Markup, escape

# Persian, Indic scripts and emoji fall apart without these joiners: they stay as they are.
_JOINERS = "\u200c\u200d"
# Cc: control, Cf: format (some reverse the direction of text), Cs: lone surrogates, Zl and Zp: separators
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def in_brackets(text: str) -> str:
    """`text` with its hidden characters as [U+202E]; not escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"[{code}]" if code else character for character, code in _code_points(text))


def in_boxes(text: str) -> Markup:
    """`text` as content of an HTML element, with its hidden characters as boxes (class "code") such as U+202E."""
    if text.isascii() and text.isprintable():
        return escape(text)
    parts = (f'<span class="code">{code}</span>' if code else escape(part) for part, code in _code_points(text))
    return Markup("".join(parts))


def _code_points(text: str) -> Iterator[tuple[str, str | None]]:
    """Each character of `text` with its code point, U+202E, if it is hidden. Line feeds are not."""
    for character in text:
        hidden = unicodedata.category(character) in _HIDDEN and character not in _JOINERS and character != "\n"
        yield character, f"U+{ord(character):04X}" if hidden else None
