"""HTML from data: escaped text, figures that carry their full value, tables, heat maps, marked differences."""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import pairwise

import regex

# Shown as they are: joiners, without which Persian, Indic scripts and emoji fall apart.
_JOINERS = "\u200c\u200d"
# Cc: control, Cf: format (among them what reverses the direction), Cs: lone surrogates, Zl and Zp: separators
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Words that differences are looked for in; the rest of a longer line stands unmarked, since the time is quadratic.
COMPARED = 500


def plain(value: str) -> str:
    """`value` for an attribute or a title: escaped, with hidden characters by their code point."""
    return html.escape(_visible(value, "[{}]"))


def text(value: str) -> str:
    """`value` as content of an element: escaped, with hidden characters as marked code points."""
    return _visible(html.escape(value), '<span class="code">{}</span>')


def _visible(value: str, form: str) -> str:
    if value.isascii() and value.isprintable():
        return value
    found = []
    for character in value:
        hidden = unicodedata.category(character) in _HIDDEN and character not in _JOINERS
        found.append(form.format(f"U+{ord(character):04X}") if hidden and character != "\n" else character)
    return "".join(found)


def language(code: str) -> str:
    """Attributes of an element with text of that language; its direction follows its first letter."""
    return f'lang="{plain(code.replace("_", "-"))}" dir="auto"'


def figure(value: float | None, form: str = "{:,.2f}", *, of: str = "", scale: float = 1) -> str:
    """A number with its full value in the attribute; `of` names where it comes from, such as bleu.score.

    What is read is `value` times `scale`, as `form` writes it. Nothing for None.
    """
    if value is None:
        return ""
    origin = f' data-figure="{plain(of)}"' if of else ""
    return f'<data value="{value!r}"{origin}>{form.format(value * scale)}</data>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, keys: Sequence[str] = ()) -> str:
    """A table of HTML cells, which scrolls by itself where it is too wide; the first of each row is its heading.

    `keys` name the systems that rows are about, for scripts and tests.
    """
    lines = [
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table class="sortable">',
        f"<caption>{caption}</caption>",
        "<thead><tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr></thead><tbody>",
    ]
    for position, (first, *others) in enumerate(rows):
        key = f' data-system="{keys[position]}"' if keys else ""
        cells = "".join(f"<td>{cell}</td>" for cell in others)
        lines.append(f'<tr{key}><th scope="row">{first}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def heat_map(caption: str, source: Sequence[str], target: Sequence[str], weights: Sequence[Sequence[float]]) -> str:
    """A table coloured by weights[t][s] of target word t (rows) on source word s (columns), with them in per cent."""
    head = "".join(f'<th scope="col"><span>{text(word)}</span></th>' for word in source)
    lines = [
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table class="heat">',
        f"<caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead><tbody>",
    ]
    for word, row in zip(target, weights, strict=True):
        cells = "".join(f'<td class="h{round(min(max(weight, 0), 1) * 10)}">{100 * weight:.0f}</td>' for weight in row)
        lines.append(f'<tr><th scope="row">{text(word)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def words(line: str, *, spaced: bool) -> list[str]:
    """Words, marks and the spaces between them; characters as readers see them where words have no spaces."""
    return regex.findall(r"\s+|\w+|[^\w\s]" if spaced else r"\X", line)


def marked(line: str, reference: str, *, spaced: bool, lowercase: bool) -> str:
    """`line` with what `reference` does not have, in this order, in <mark>."""

    def key(part: str) -> str:
        return part.lower() if lowercase else part

    parts = words(line, spaced=spaced)
    places = [place for place, part in enumerate(parts) if not part.isspace()][:COMPARED]
    theirs = [key(part) for part in words(reference, spaced=spaced) if not part.isspace()][:COMPARED]
    matcher: SequenceMatcher[str] = SequenceMatcher(None, [key(parts[place]) for place in places], theirs)
    differs = set(places)
    for block in matcher.get_matching_blocks():
        differs -= set(places[block.a : block.a + block.size])
    # A space between two marked words is marked with them.
    for before, after in pairwise(places):
        if before in differs and after in differs:
            differs.update(range(before, after))
    found, run = [], ""
    for place, part in enumerate([*parts, ""]):
        inside = place in differs
        if inside:
            run += part
            continue
        if run:
            found.append(f"<mark>{text(run)}</mark>")
            run = ""
        found.append(text(part))
    return "".join(found)
