"""What is normalised in a line, and which pairs are dropped."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.cleaning import REASONS, Limits, clean_pairs
from recipes.tokenization.normalisation import normalise

LONG = "one two three four five"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("as it is: „süß“ … ½", "as it is: „süß“ … ½"),
        ("  a\t b \r", "a b"),
        ("a\u00a0b\u2009c\u3000d\u2028e\u0085f", "a b c d e f"),
        ("\ufeffmark", "mark"),
        ("Zwie\u00adbel\u200b", "Zwiebel"),
        ("bell\x07 and \x1bescape\x9f", "bell and escape"),
        ("u\u0308ber", "über"),
        ("\u2581mark", "_mark"),
        ("👩\u200d👧", "👩\u200d👧"),
        (" \u200b ", ""),
        ("", ""),
    ],
)
def test_normalise(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@given(st.text())
def test_normalised_text_is_stable_single_spaced_and_composed(line: str) -> None:
    once = normalise(line)
    assert normalise(once) == once
    assert once.split() == [word for word in once.split(" ") if word]
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(character) == "Cc" for character in once)


def run(pairs: list[tuple[str, str]], **limits: object) -> tuple[list[tuple[str, str]], Counter[str]]:
    dropped: Counter[str] = Counter()
    kept = list(clean_pairs(pairs, Limits(**limits), dropped))  # type: ignore[arg-type]
    return kept, dropped


@pytest.mark.parametrize(
    ("pair", "limits", "reason"),
    [
        (("", "a"), {}, "empty"),
        (("a", ""), {}, "empty"),
        ((LONG, "a b"), {"max_length": 4}, "too long"),
        (("a b", LONG), {"max_length": 4}, "too long"),
        ((LONG, LONG + " six"), {"max_length": 6}, None),
        (("a", "b c d e"), {"max_ratio": 3.0}, "length ratio"),
        (("b c d e", "a"), {"max_ratio": 3.0}, "length ratio"),
        (("a", "b c d"), {"max_ratio": 3.0}, None),
        (("a", LONG), {"max_ratio": None}, None),
        ((LONG, LONG), {}, "identical sides"),
        ((LONG, LONG), {"identical": "keep"}, None),
        (("Hauptstraße 5", "Hauptstraße 5"), {}, None),
        (("abc", "abcdefg"), {"unit": "characters", "max_ratio": 2.0}, "length ratio"),
        (("abcd", "ab cd"), {"unit": "characters", "max_length": 4}, "too long"),
    ],
)
def test_what_is_dropped(pair: tuple[str, str], limits: dict[str, object], reason: str | None) -> None:
    kept, dropped = run([pair], **limits)
    assert kept == ([] if reason else [pair])
    assert dropped == ({reason: 1} if reason else {})


def test_duplicates_are_pairs_and_the_first_stays() -> None:
    pairs = [("a", "x"), ("a", "y"), ("a", "x"), ("b", "x")]
    assert run(pairs) == ([("a", "x"), ("a", "y"), ("b", "x")], Counter({"duplicate": 1}))
    assert run(pairs, duplicates="keep") == (pairs, Counter())


@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("ab ", max_size=9))))
def test_every_pair_is_kept_in_order_or_counted_once(raw: list[tuple[str, str]]) -> None:
    pairs = [(normalise(source), normalise(target)) for source, target in raw]
    kept, dropped = run(pairs, max_length=3, max_ratio=2.0)
    assert len(kept) + dropped.total() == len(pairs)
    assert set(dropped) <= set(REASONS)
    remaining = iter(pairs)
    assert all(pair in remaining for pair in kept)
