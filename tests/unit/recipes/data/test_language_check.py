"""The language check: swapped and mislabelled text is seen; nothing is said where nothing is certain."""

import pytest

from recipes.data.language_check import mismatch

TEXT = {
    "de": "Der Mann steht mit dem Hund auf der Straße und sieht nicht, dass es schon wieder regnet.",
    "en": "The man stands on the street with his dog and does not see that it is about to rain once again.",
    "fr": "Le chien est dans la rue avec un homme qui ne voit pas que les nuages sont sur la ville.",
    "vi": "Người đàn ông đứng trên đường với con chó và không biết rằng trời sẽ có mưa cho đến khi tối.",
    "ru": "Мужчина стоит на улице с собакой и не видит, что скоро снова начнётся дождь.",
    "ja": "男の人が犬と道に立っていて、もうすぐまた雨が降り始めることに気がついていません。",
}


@pytest.mark.parametrize("language", TEXT)
def test_text_looks_like_its_language(language: str) -> None:
    assert mismatch([TEXT[language]] * 300, language) is None
    assert mismatch([TEXT[language]] * 300, f"{language}_XX") is None


@pytest.mark.parametrize(
    ("text", "declared", "seen"),
    [
        ("en", "de", "en"),
        ("de", "en", "de"),
        ("de", "nl", "de"),
        ("vi", "en", "vi"),
        ("fr", "en", "fr"),
        ("ru", "de", "Cyrillic letters"),
        ("de", "ru", "Latin letters"),
        ("en", "ja", "Latin letters"),
    ],
)
def test_text_of_another_language(text: str, declared: str, seen: str) -> None:
    assert mismatch([TEXT[text]] * 300, declared) == seen


def test_nothing_is_said_of_little_text_unknown_languages_and_names() -> None:
    assert mismatch([TEXT["en"]] * 5, "de") is None
    assert mismatch([TEXT["en"]] * 300, "sw") is None
    assert mismatch(["Anna Berlin Paris Maria London"] * 300, "de") is None
    assert mismatch([], "de") is None
    assert mismatch(["17 + 4 = 21"] * 300, "ru") is None
