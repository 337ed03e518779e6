"""recipes.reporting.differences: what a hypothesis has and its reference does not, marked in the page."""

from itertools import pairwise

import pytest

from recipes.reporting import differences
from recipes.reporting.page import environment


def marked(line: str, reference: str, *, spaced: bool = True, lowercase: bool = False) -> str:
    """`line` with its differences from `reference`, as the page shows them."""
    segments = differences.segments(line, reference, spaced=spaced, lowercase=lowercase)
    assert all(a.differs != b.differs for a, b in pairwise(segments))
    template = "{% from 'macros.html.jinja' import marked %}{{ marked(segments) }}"
    return environment().from_string(template).render(segments=segments)


@pytest.mark.parametrize(("line", "reference", "spaced", "expected"), [
    ("a b c", "a c", True, "a <mark>b</mark> c"),
    ("a b c.", "x y z.", True, "<mark>a b c</mark>."),
    ("", "a", True, ""),
    ("A", "a", True, "<mark>A</mark>"),
    ("你好世界", "你世界", False, "你<mark>好</mark>世界"),
    ("हिन्दी है", "हिन्दी", True, "हिन्दी <mark>है</mark>"),
    ("a<b", "a", True, "a<mark>&lt;b</mark>"),
])  # fmt: skip
def test_what_the_reference_lacks_is_marked(line: str, reference: str, spaced: bool, expected: str) -> None:
    assert marked(line, reference, spaced=spaced) == expected


def test_case_counts_only_where_bleu_counts_it() -> None:
    assert marked("A b", "a B", lowercase=True) == "A b"


def test_long_lines_take_no_longer() -> None:
    line = "a b " * 20_000
    text = marked(line, "b a " * 20_000)
    assert text.replace("<mark>", "").replace("</mark>", "") == line
