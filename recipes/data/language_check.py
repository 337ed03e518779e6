"""Whether text looks like its declared language: a coarse check against swapped and mislabelled files.

It objects only where that is certain: the declared language is one of those below, the sample is large enough, and the
text is in another script or has at least twice as many function words of another language. It says nothing about the
quality of a translation.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from recipes.config.corpora import CorpusSettings
from recipes.data.pairs import Pairs
from thoth_core.errors import UserError

SAMPLE_LINES = 2000
SAMPLE_WORDS = 200  # with fewer words nothing is certain
CLEAR_SHARE = 0.1  # running text of the languages below has a share of 0.2 to 0.5 of their function words
CLEAR_FACTOR = 2.0

# Some of the most frequent words of each language.
_WORDS = {
    "cs": "a se je na v že to s z do ale jsem by o jako i pro za si tak jsou který byl nebo jeho jsme když ve",
    "da": "og i at det er en til af på for ikke de der jeg med den har et var som vi du han men fra kan om",
    "de": "der die das und ist nicht ein eine einen einem einer zu den dem des mit von für auf sich "
    "ich es wir sie im auch als an werden aus er hat dass wird bei sind in",
    "en": "the and of to a is that it you for was with on are this be have at not they he we by his "
    "from or an what there their as in i",
    "es": "el la los las de que y en un una por con no es para se del al lo como su pero más está hay son yo",
    "fi": "ja on ei se että hän oli mutta ovat kun niin myös kuin joka tai jos minä mitä sen olen sitä hänen tämä",
    "fr": "le la les de des et un une est que qui dans pour pas sur au du il je ce vous nous avec sont en à ne",
    "hu": "a az és hogy nem is egy van volt meg de ez csak már azt mert ha mint vagy még ki el lehet nagyon",
    "it": "il lo la gli di e che un una è non per con del della sono in si ho come da al le i questo ma anche",
    "nl": "de het een en van is dat niet ik op te zijn met voor er die aan in om ook maar als bij naar we heeft",
    "no": "og i det er en til av på for ikke de som jeg med den har et var vi du han men fra kan om å",
    "pl": "i w na z się nie do to jest że o jak ale za po co tak od jego dla by są przez ten był czy które",
    "pt": "o a os as de que e em um uma para com não do da no na se por mais é está como mas foi são eu isso",
    "ro": "și în de la a că nu o un cu pe să mai este din sunt pentru care ce au fi dar am lui ca ei",
    "sv": "och i att det är en till av på för inte de som jag med den har ett var vi du han men från kan om",
    "tr": "bir ve bu da de için ne çok o mi ama ile ben daha var gibi kadar sonra en değil olarak her",
    "vi": "và của là có không được một cho người trong này đã những các tôi với để khi đó chúng ta như rất ở",
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}

# The scripts of a language, by the first word of Unicode's names of its letters.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "ar": ("ARABIC",),
    "bg": ("CYRILLIC",),
    "el": ("GREEK",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK", "HALFWIDTH"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "th": ("THAI",),
    "uk": ("CYRILLIC",),
    "zh": ("CJK",),
} | dict.fromkeys(FUNCTION_WORDS, ("LATIN", "FULLWIDTH"))
SCRIPT_SHARE = 0.3  # of all letters; names and quotations in another script are common

_WORD = re.compile(r"[^\W\d_]+")


def mismatch(lines: Sequence[str], declared: str) -> str | None:
    """What `lines` look like ("en", "Cyrillic letters") if that is certainly not the language `declared`, else None."""
    language = declared.split("_")[0]
    if language not in SCRIPTS:
        return None
    step = max(1, len(lines) // SAMPLE_LINES)
    words = [word for line in lines[::step] for word in _WORD.findall(line.lower())]
    letters = Counter(unicodedata.name(letter, "").split(" ")[0] for word in words for letter in word)
    if letters.total() >= SAMPLE_WORDS:
        # Japanese mixes three scripts, so that all scripts of the declared language count together.
        expected = sum(letters[script] for script in SCRIPTS[language])
        if expected < SCRIPT_SHARE * letters.total():
            return f"{letters.most_common(1)[0][0].capitalize()} letters"
    if language not in FUNCTION_WORDS or len(words) < SAMPLE_WORDS:
        return None
    counts = Counter(words)
    shares = {
        known: sum(counts[word] for word in function_words) / len(words)
        for known, function_words in FUNCTION_WORDS.items()
    }
    likeliest = max(shares, key=lambda known: shares[known])
    if shares[likeliest] >= CLEAR_SHARE and shares[likeliest] >= CLEAR_FACTOR * shares[language]:
        return likeliest
    return None


def check_languages(raw: dict[str, Pairs], corpus: CorpusSettings) -> None:
    """Refuse text whose two sides are the same, or that certainly is not in its declared language.

    Raises:
        UserError: names the file and what its text looks like.
    """
    for text in raw.values():
        if text.source == text.target:
            raise UserError(f"{text.origins[0]} and {text.origins[1]}: contain the same text; give two languages")
        if not corpus.clean.language_check:
            continue
        for lines, language, origin in zip((text.source, text.target), corpus.languages, text.origins, strict=True):
            if seen := mismatch(lines, language):
                raise UserError(
                    f"{origin}: should be '{language}' but looks like {seen}; correct swapped or wrong languages, or "
                    "accept the text with --no-language-check"
                )
