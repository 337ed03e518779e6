"""Things, buildings, vehicles and goods: tables of nouns, and their forms in both languages."""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from recipes.data.quickstart import phrases
from recipes.data.quickstart.phrases import Gender
from recipes.data.quickstart.slots import Filler, Forms, Slot, one_form, size


class Noun(NamedTuple):
    """A countable noun in both languages."""

    german: str
    gender: Gender
    german_plural: str
    english: str
    english_plural: str


class Thing(NamedTuple):
    """A noun that is only used in the singular."""

    german: str
    gender: Gender
    english: str


GOODS = (
    Noun("Apfel", "m", "Äpfel", "apple", "apples"),
    Noun("Bild", "n", "Bilder", "picture", "pictures"),
    Noun("Blume", "f", "Blumen", "flower", "flowers"),
    Noun("Buch", "n", "Bücher", "book", "books"),
    Noun("Ei", "n", "Eier", "egg", "eggs"),
    Noun("Flasche", "f", "Flaschen", "bottle", "bottles"),
    Noun("Hemd", "n", "Hemden", "shirt", "shirts"),
    Noun("Hut", "m", "Hüte", "hat", "hats"),
    Noun("Karte", "f", "Karten", "ticket", "tickets"),
    Noun("Lampe", "f", "Lampen", "lamp", "lamps"),
    Noun("Stuhl", "m", "Stühle", "chair", "chairs"),
    Noun("Tasse", "f", "Tassen", "cup", "cups"),
)
GOODS_WITHOUT_LOOKS = ("Apfel", "Ei", "Karte")
# Weak stem and English.
LOOKS = (
    ("alt", "old"),
    ("blau", "blue"),
    ("groß", "big"),
    ("klein", "small"),
    ("neu", "new"),
    ("rot", "red"),
)
BUILDINGS = (
    Thing("Brücke", "f", "bridge"),
    Thing("Bahnhof", "m", "station"),
    Thing("Haus", "n", "house"),
    Thing("Kirche", "f", "church"),
    Thing("Schloss", "n", "castle"),
    Thing("Schule", "f", "school"),
    Thing("Turm", "m", "tower"),
)
EVENTS = (
    Thing("Film", "m", "film"),
    Thing("Führung", "f", "tour"),
    Thing("Konzert", "n", "concert"),
    Thing("Kurs", "m", "course"),
    Thing("Spiel", "n", "match"),
    Thing("Vorstellung", "f", "performance"),
)
PLACES = (
    Thing("Apotheke", "f", "pharmacy"),
    Thing("Bäckerei", "f", "bakery"),
    Thing("Bibliothek", "f", "library"),
    Thing("Laden", "m", "shop"),
    Thing("Markt", "m", "market"),
    Thing("Museum", "n", "museum"),
    Thing("Schwimmbad", "n", "swimming pool"),
)
VEHICLES = (
    Thing("Bus", "m", "bus"),
    Thing("Straßenbahn", "f", "tram"),
    Thing("Taxi", "n", "taxi"),
    Thing("Zug", "m", "train"),
)
ESTATE = (
    Thing("Auto", "n", "car"),
    Thing("Boot", "n", "boat"),
    Thing("Garten", "m", "garden"),
    Thing("Haus", "n", "house"),
    Thing("Wohnung", "f", "flat"),
)
CITIES = (
    ("Berlin", "Berlin"),
    ("Bremen", "Bremen"),
    ("Dresden", "Dresden"),
    ("Genf", "Geneva"),
    ("Hamburg", "Hamburg"),
    ("Köln", "Cologne"),
    ("München", "Munich"),
    ("Rom", "Rome"),
    ("Wien", "Vienna"),
    ("Zürich", "Zurich"),
)
# Participle, infinitive; past, base.
TRADES = (
    ("gekauft", "kaufen", "bought", "buy"),
    ("verkauft", "verkaufen", "sold", "sell"),
    ("bestellt", "bestellen", "ordered", "order"),
    ("bezahlt", "bezahlen", "paid for", "pay for"),
    ("gesucht", "suchen", "looked for", "look for"),
)


@cache
def noun(german: str, gender: Gender, english: str, look: tuple[str, str] | None = None) -> Filler:
    """A noun in the singular, with an adjective if there is a `look`.

    German forms: "der" and "den" (definite, nominative and accusative), "einen" (indefinite accusative),
    "rel" (the relative pronoun). English forms: "the", "a".
    """
    der, den = phrases.DEFINITE["nominative"][gender], phrases.DEFINITE["accusative"][gender]
    einen = phrases.INDEFINITE["accusative"][gender]
    forms = Forms(der=f"{der} {german}", den=f"{den} {german}", einen=f"{einen} {german}", rel=der)
    if look:
        stem, english_look = look
        english = f"{english_look} {english}"
        weak, strong = ("en", "en") if gender == "m" else ("e", "e" if gender == "f" else "es")
        forms["der"] = f"{der} {stem}e {german}"
        forms["den"] = f"{den} {stem}{weak} {german}"
        forms["einen"] = f"{einen} {stem}{strong} {german}"
    return forms, Forms({"the": f"the {english}", "a": phrases.a(english)})


def nouns(choice: Sequence[Thing]) -> Slot:
    """The slot of a noun among `choice`; forms as in `noun`."""
    return lambda rng: noun(*rng.choice(choice))


def _look(rng: Random, good: Noun) -> tuple[str, str] | None:
    """An adjective for about every third noun that can bear one."""
    if good.german in GOODS_WITHOUT_LOOKS or rng.randrange(3):
        return None
    return rng.choice(LOOKS)


def ware(rng: Random) -> Filler:
    """One thing that is sold: "der rote Hut"; forms as in `noun`."""
    good = rng.choice(GOODS)
    return noun(good.german, good.gender, good.english, _look(rng, good))


def some_goods(rng: Random) -> Filler:
    """What is bought: "drei rote Hüte", "einen Hut" (accusative)."""
    if rng.randrange(8):
        return several_goods(rng)
    german, english = ware(rng)
    return one_form((german["einen"], english["a"]))


def several_goods(rng: Random) -> Filler:
    """At least two things: "drei rote Hüte"."""
    good = rng.choice(GOODS)
    look = _look(rng, good)
    german_look, english_look = (f"{look[0]}e ", f"{look[1]} ") if look else ("", "")
    german, english = phrases.cardinal(size(rng, (6, 2, 12), (3, 13, 99), (1, 100, 999)))
    return one_form((f"{german} {german_look}{good.german_plural}", f"{english} {english_look}{good.english_plural}"))


def trade(rng: Random) -> Filler:
    """What is done with goods: "gekauft" (participle; past in English) and "inf" (infinitive)."""
    participle, infinitive, past, base = rng.choice(TRADES)
    return Forms({"": participle, "inf": infinitive}), Forms({"": past, "inf": base})
