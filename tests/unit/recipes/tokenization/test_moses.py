"""recipes.moses against what tokenizer.perl and lowercase.perl do, rule by rule; the lines are our own."""

import pytest

from recipes.tokenization import moses

# (language, line, its tokens without escapes)
TOKENS = [
    # Everything but letters, digits and .'`,- stands alone.
    ("de", "Er ging (spät) nach Hause!", "Er ging ( spät ) nach Hause !"),
    ("en", "50% of $3: a/b=c_d; x+y", "50 % of $ 3 : a / b = c _ d ; x + y"),
    ("de", "»Ja«, „nein“ – ‚doch‘ … 5°C, 10€", "» Ja « , „ nein “ – ‚ doch ‘ … 5 ° C , 10 €"),
    ("en", 'the "well-known" co-op -- or - so', 'the " well-known " co-op -- or - so'),
    ("en", "me@home.org and https://a.org/b", "me @ home.org and https : / / a.org / b"),
    # Commas, except within numbers.
    ("en", "one,two,three, 1,000 and 5,x", "one , two , three , 1,000 and 5 , x"),
    ("en", "in 1990, it was 7,", "in 1990 , it was 7 ,"),
    ("en", "½,5 and ٣,٤", "½ , 5 and ٣,٤"),
    # Dots together, and the last of a sentence.
    ("en", "Wait... what.. ever.", "Wait ... what .. ever ."),
    ("en", "a....b", "a .... b"),
    # Abbreviations, those before numbers only, dotted words, and a small letter behind.
    ("en", "Dr. No met Mr. Big at No. 5. No. Yes", "Dr. No met Mr. Big at No. 5 . No . Yes"),
    ("en", "at 5 p.m. Then in the U.S.A. They slept. and so on", "at 5 p.m. Then in the U.S.A. They slept. and so on"),
    ("de", "Am 3. März kam Prof. Kurz, z.B. Mittwoch. Es war", "Am 3. März kam Prof. Kurz , z.B. Mittwoch . Es war"),
    ("en", "on Downing St.", "on Downing St."),
    ("vi", "Ông Tr. Nam ở Q. 5. Vâng", "Ông Tr . Nam ở Q. 5 . Vâng"),  # without a list of its own: the English one
    # English apostrophes go with what follows them.
    ("en", "it's John's, isn't it? 'Yes', the 1990's", "it 's John 's , isn 't it ? ' Yes ' , the 1990 's"),
    ("en", "rock 'n' roll o'clock 5'10", "rock ' n ' roll o 'clock 5 ' 10"),
    ("en", "He said 'no.'", "He said ' no . ' "),  # tokenizer.perl leaves a space there
    # French and Italian ones with what goes before; other languages split both off.
    ("fr", "L'homme d'hier, c'est aujourd'hui l'été", "L' homme d' hier , c' est aujourd' hui l' été"),
    ("it", "l'anno '68", "l' anno ' 68"),
    ("de", "Geht's? Hans' Hut", "Geht ' s ? Hans ' Hut"),
    # Letters are those of every script, also in lines of another language.
    ("en", "我爱你, 你好。 한국어!", "我爱你 , 你好 。 한국어 !"),
    ("zh", "我爱北京。他说：“好”", "我爱北京 。 他说 ： “ 好 ”"),
    ("ja", "今日は、カタカナ。", "今日は 、 カタカナ 。"),
    ("vi", "Nguyễn được, (phở) ngon!", "Nguyễn được , ( phở ) ngon !"),
    ("en", "cafe\u0301 a\u200bb", "cafe \u0301 a \u200b b"),  # marks and what is invisible are no letters
    ("en", "Fred. ნახა", "Fred. ნახა"),  # Georgian letters are small ones
    # Spaces and control characters.
    ("en", " two  spaces\tand\u00a0more\u2028lines\r", "two spaces and more lines"),
    ("en", "a\x1cb c\x01d", "ab cd"),
    ("en", " \t ", " \t "),
    ("en", "", ""),
]


@pytest.mark.parametrize(("language", "line", "tokens"), TOKENS)
def test_tokens(language: str, line: str, tokens: str) -> None:
    assert moses.tokenise(line, language, escape=False) == tokens


# What sacremoses leaves out of tokenizer.perl's rules for single languages.
OTHERS = [
    ("fi", "EU:n klo: Ei 10:30 USA:", "EU:n klo : Ei 10 : 30 USA :"),
    ("sv", "S:t Erik: Hej", "S:t Erik : Hej"),
    ("ca", "l'home col·lega", "l' home col·lega"),
    ("ga", "d'fhág m'athair", "d' fhág m' athair"),
    ("so", "la'aan iyo ba' Go'an", "la'aan iyo ba ' Go'an"),
    ("tdt", "ne'ebé la' O'Neil", "ne'ebé la ' O ' Neil"),
    ("hi", "हिन्दी", "हिन ् दी"),
    ("es", "en Fil. Ana", "en Fil . Ana"),  # a space behind it in the list
]


@pytest.mark.parametrize(("language", "line", "tokens"), OTHERS)
def test_rules_of_single_languages(language: str, line: str, tokens: str) -> None:
    assert moses.tokenise(line, language, escape=False) == tokens


def test_escapes() -> None:
    line = 'AT&T\'s <b> [x] a|b "q" &amp;'
    tokens = "AT &amp; T &apos;s &lt; b &gt; &#91; x &#93; a &#124; b &quot; q &quot; &amp; amp ;"
    assert moses.tokenise(line, "en") == tokens
    assert " ".join(map(moses.unescape, tokens.split(" "))) == 'AT & T \'s < b > [ x ] a | b " q " & amp ;'


def test_the_script_of_a_language_is_passed_over() -> None:
    assert moses.tokenise("c'est ça", "fr_CA") == moses.tokenise("c'est ça", "fr")


def test_lower_case_is_by_the_character() -> None:
    assert moses.lowercase("ÄRGER ÉTÉ ĐƯỜNG ΟΔΟΣ МИР &Amp; ß") == "ärger été đường οδοσ мир &amp; ß"
    assert moses.lowercase("İ") == "i\u0307"


PLAIN = [
    ("en", "It's John's (old) car, isn't it? \"Yes,\" she said: 5% of $3."),
    ("fr", "L'homme d'hier « va » bien."),
    ("de", "Der Hund – ja, der – bellt <laut> & [kurz]; 1.000,5 Mal!"),
    ("vi", "Nguyễn được (phở) ngon!"),
    ("cs", "má li d' - li to"),
    ("en", ""),
]


@pytest.mark.parametrize(("language", "line"), PLAIN)
def test_plain_text_comes_back(language: str, line: str) -> None:
    assert moses.detokenise(moses.tokenise(line, language), language).replace(" ", "") == line.replace(" ", "")
    if language in ("en", "fr", "vi"):
        assert moses.detokenise(moses.tokenise(line, language), language) == line
