"""What fills the slots of the embedded corpus's frames: each function draws a phrase and its forms.

A filler is (german, english), both sides a `Forms`: the phrase by the name of its form, "" for the plain one.
Only whole numbers are drawn, so that a seed gives the same phrases on every platform.
"""

import datetime
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

from recipes.data.quickstart import phrases
from recipes.data.quickstart.phrases import Case, Gender, Pair

T = TypeVar("T")


class Forms(dict[str, str]):
    """A phrase's forms by name; in a frame `{slot:name}` chooses one."""

    def __format__(self, name: str) -> str:
        return self[name]


Filler = tuple[Forms, Forms]
Slot = Callable[[Random], Filler]


def by_weight(rng: Random, weights: dict[T, int]) -> T:
    """Choose a key in proportion to its weight."""
    at = rng.randrange(sum(weights.values()))
    for key, weight in weights.items():
        at -= weight
        if at < 0:
            return key
    raise AssertionError("unreachable: the weights add up")


def one_form(phrase: Pair) -> Filler:
    """A phrase that has its plain form only."""
    return Forms({"": phrase[0]}), Forms({"": phrase[1]})


# ---- People and their verbs ----------------------------------------------------------------------

# By infinitive or, where a frame needs the past, by its plain form: forms for ich, er/sie, wir/sie (plural).
GERMAN_VERBS = {
    "fahren": ("fahre", "fährt", "fahren"),
    "feiern": ("feiere", "feiert", "feiern"),
    "fragen": ("frage", "fragt", "fragen"),
    "gehen": ("gehe", "geht", "gehen"),
    "glauben": ("glaube", "glaubt", "glauben"),
    "haben": ("habe", "hat", "haben"),
    "kommen": ("komme", "kommt", "kommen"),
    "lesen": ("lese", "liest", "lesen"),
    "mögen": ("möchte", "möchte", "möchten"),
    "müssen": ("muss", "muss", "müssen"),
    "sagen": ("sage", "sagt", "sagen"),
    "sein": ("bin", "ist", "sind"),
    "stehen": ("stehe", "steht", "stehen"),
    "warten": ("warte", "wartet", "warten"),
    "werden": ("werde", "wird", "werden"),
    "wissen": ("weiß", "weiß", "wissen"),
    "wohnen": ("wohne", "wohnt", "wohnen"),
    "wollen": ("will", "will", "wollen"),
    "wurde": ("wurde", "wurde", "wurden"),
}
ENGLISH_VERBS = {
    "ask": ("ask", "asks", "ask"),
    "be": ("am", "is", "are"),
    "celebrate": ("celebrate", "celebrates", "celebrate"),
    "do": ("do", "does", "do"),
    "get": ("get", "gets", "get"),
    "go": ("go", "goes", "go"),
    "have": ("have", "has", "have"),
    "live": ("live", "lives", "live"),
    "say": ("say", "says", "say"),
    "think": ("think", "thinks", "think"),
    "want": ("want", "wants", "want"),
    "was": ("was", "was", "were"),
}


class Person(NamedTuple):
    """A subject; `person` is the place of its verbs in the tables above."""

    german: str
    english: str
    person: int
    his_german: str
    his_english: str
    whose: str


PEOPLE = (
    Person("ich", "I", 0, "meinen", "my", "my"),
    Person("er", "he", 1, "seinen", "his", "his"),
    Person("sie", "she", 1, "ihren", "her", "her"),
    Person("Anna", "Anna", 1, "ihren", "her", "Anna's"),
    Person("Maria", "Maria", 1, "ihren", "her", "Maria's"),
    Person("Paul", "Paul", 1, "seinen", "his", "Paul's"),
    Person("Lukas", "Lukas", 1, "seinen", "his", "Lukas's"),
    Person("Frau Weber", "Mrs Weber", 1, "ihren", "her", "Mrs Weber's"),
    Person("Herr Klein", "Mr Klein", 1, "seinen", "his", "Mr Klein's"),
    Person("mein Bruder", "my brother", 1, "seinen", "his", "my brother's"),
    Person("meine Schwester", "my sister", 1, "ihren", "her", "my sister's"),
    Person("wir", "we", 2, "unseren", "our", "our"),
    Person("meine Freunde", "my friends", 2, "ihren", "their", "my friends'"),
)


@cache
def person(who: Person) -> Filler:
    """A person; forms: each verb, "his" (accusative in German) and "whose" (English)."""
    german = Forms({verb: forms[who.person] for verb, forms in GERMAN_VERBS.items()})
    english = Forms({verb: forms[who.person] for verb, forms in ENGLISH_VERBS.items()})
    german.update({"": who.german, "his": who.his_german})
    english.update({"": who.english, "his": who.his_english, "whose": who.whose})
    return german, english


# Those one asks or speaks about; those who have a birthday of their own.
OTHERS = tuple(who for who in PEOPLE if who.german not in ("ich", "wir"))
SINGLE = tuple(who for who in PEOPLE if who.person < 2)


def people(choice: Sequence[Person]) -> Slot:
    """The slot of a person among `choice`."""
    return lambda rng: person(rng.choice(choice))


# ---- Nouns ---------------------------------------------------------------------------------------


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
    german, english = phrases.cardinal(_size(rng, (6, 2, 12), (3, 13, 99), (1, 100, 999)))
    return one_form((f"{german} {german_look}{good.german_plural}", f"{english} {english_look}{good.english_plural}"))


def trade(rng: Random) -> Filler:
    """What is done with goods: "gekauft" (participle; past in English) and "inf" (infinitive)."""
    participle, infinitive, past, base = rng.choice(TRADES)
    return Forms({"": participle, "inf": infinitive}), Forms({"": past, "inf": base})


# ---- Numbers, prices, lengths of time ------------------------------------------------------------


def _size(rng: Random, *ranges: tuple[int, int, int]) -> int:
    """A number from one of the ranges (weight, first, last), never 1, 101, ... (see `phrases.price`)."""
    first, last = by_weight(rng, {(first, last): weight for weight, first, last in ranges})
    n = rng.randrange(first, last + 1)
    return n if n % 100 != 1 else n + 1


def _amount(rng: Random) -> tuple[int, int]:
    """An amount of money: whole units, hundredths."""
    cents = rng.choice((0, 0, 5 * rng.randrange(1, 20), rng.randrange(2, 100)))
    if cents and rng.randrange(15) == 0:
        return 0, cents
    return (1 if rng.randrange(12) == 0 else _size(rng, (4, 2, 12), (5, 13, 99), (1, 100, 999))), cents


def price(rng: Random) -> Filler:
    """A price, accusative: "einen Euro fünfzig"."""
    whole, cents = _amount(rng)
    currency = by_weight(rng, {"Euro": 4, "Dollar": 1, "Pfund": 1})
    return one_form(phrases.price(whole, cents, currency, full=rng.randrange(4) == 0))


def change(rng: Random) -> Filler:
    """From one price to another: "von einem Euro auf zwei Euro fünfzig"; forms: "up", "down"."""
    low, high = sorted((_amount(rng), _amount(rng)))
    if low == high:
        return change(rng)
    german, english = Forms(), Forms()
    for name, old, new in (("up", low, high), ("down", high, low)):
        old_german, old_english = phrases.price(*old, case="dative")
        new_german, new_english = phrases.price(*new)
        german[name] = f"von {old_german} auf {new_german}"
        english[name] = f"from {old_english} to {new_english}"
    return german, english


def fortune(rng: Random) -> Filler:
    """The price of a house: "dreihundertfünfundvierzigtausend Euro"."""
    return one_form(phrases.price(_thousands(rng)))


def inhabitants(rng: Random) -> Filler:
    """How many people live in a town."""
    return one_form(phrases.cardinal(_thousands(rng)))


def _thousands(rng: Random) -> int:
    """A number from 1,000 to 999,000, most of them round."""
    if rng.randrange(3):
        return 1000 * rng.randrange(1, 1000)
    return 1000 * rng.randrange(1, 100) + _size(rng, (1, 2, 99), (4, 100, 999))


def number(rng: Random) -> Filler:
    """A number that counts something, 2 to 999."""
    return one_form(phrases.cardinal(_size(rng, (2, 2, 12), (6, 13, 99), (2, 100, 999))))


def age(rng: Random) -> Filler:
    """An age in years."""
    return one_form(phrases.cardinal(rng.randrange(2, 100)))


def decimal(rng: Random) -> Filler:
    """A number with one decimal."""
    return one_form(phrases.decimal(rng.randrange(100), rng.randrange(1, 10)))


def share(rng: Random) -> Filler:
    """Some of many: "drei von zwanzig"."""
    many = _size(rng, (3, 10, 99), (2, 100, 999))
    some = rng.randrange(2, many)
    some -= some % 100 == 1
    (german, english), (german_many, english_many) = phrases.cardinal(some), phrases.cardinal(many)
    return one_form((f"{german} von {german_many}", f"{english} of {english_many}"))


def percent(rng: Random) -> Filler:
    """A percentage: "einundzwanzig Prozent", "drei Komma fünf Prozent"."""
    whole = rng.randrange(2, 100)
    german, english = phrases.cardinal(whole) if rng.randrange(3) else phrases.decimal(whole, rng.randrange(1, 10))
    return one_form((f"{german} Prozent", f"{english} per cent"))


# German and English sign.
SIGNS = (("plus", "plus"), ("minus", "minus"), ("mal", "times"), ("geteilt durch", "divided by"))


def equation(rng: Random) -> Filler:
    """A true equation: "drei mal vier ist zwölf"."""
    sign = rng.choice(SIGNS)
    if sign[0] in ("plus", "minus"):
        left, right = rng.randrange(1, 100), rng.randrange(1, 100)
        result = left + right
    else:
        left, right = rng.randrange(2, 31), rng.randrange(2, 31)
        result = left * right
    if sign[0] in ("minus", "geteilt durch"):
        left, result = result, left
    a, b, c = phrases.cardinal(left), phrases.cardinal(right), phrases.cardinal(result)
    return one_form((f"{a[0]} {sign[0]} {b[0]} ist {c[0]}", f"{a[1]} {sign[1]} {b[1]} is {c[1]}"))


def ordinal(rng: Random, *, least: int = 1) -> Filler:
    """An ordinal; German forms "e", "en" and "er"."""
    first, last = by_weight(rng, {(least, 12): 4, (13, 99): 5, (100, 130): 1})
    n = rng.randrange(first, last + 1)
    german = Forms({ending: phrases.ordinal(n, ending)[0] for ending in ("e", "en", "er")})
    return german, Forms({"": phrases.ordinal(n)[1]})


def times(rng: Random) -> Filler:
    """How often: "dreimal"."""
    return one_form(phrases.times(rng.randrange(1, 31)))


def minutes(rng: Random) -> Filler:
    """How many minutes late."""
    return one_form(phrases.cardinal(rng.randrange(2, 100)))


def length(rng: Random) -> Filler:
    """A length of time from minutes to years."""
    most = {"minute": 90, "hour": 24, "day": 30, "week": 12, "month": 12, "year": 40}
    unit = rng.choice(list(most))
    n = rng.randrange(2 if unit == "minute" else 1, most[unit] + 1)
    return _cases(lambda case: phrases.duration(n, unit, case))


def ride(rng: Random) -> Filler:
    """A length of time in hours and minutes: "zweieinhalb Stunden", "eine Stunde und zehn Minuten"."""
    form, n, m = rng.randrange(4), rng.randrange(1, 13), rng.randrange(2, 60)
    if form == 0:
        return _cases(lambda case: phrases.hours_and_a_half(n % 12, case))
    if form == 1:
        return _cases(lambda case: phrases.duration(m, "minute", case))

    def hours_and_minutes(case: Case) -> Pair:
        hours, minutes = phrases.duration(n, "hour", case), phrases.duration(m, "minute", case)
        return f"{hours[0]} und {minutes[0]}", f"{hours[1]} and {minutes[1]}"

    return _cases(hours_and_minutes)


def _cases(phrase: Callable[[Case], Pair]) -> Filler:
    """A phrase in the accusative (the plain form) and the dative ("dat")."""
    german, english = phrase("accusative")
    return Forms({"": german, "dat": phrase("dative")[0]}), Forms({"": english})


# ---- Clock times ---------------------------------------------------------------------------------


def _minute(rng: Random) -> int:
    """A minute of the hour, mostly a multiple of five."""
    return rng.randrange(60) if rng.randrange(4) == 0 else 5 * rng.randrange(12)


def time(rng: Random) -> Filler:
    """A time on the twelve-hour dial: "halb acht"."""
    return one_form(phrases.clock(rng.randrange(12), _minute(rng)))


def clock(rng: Random) -> Filler:
    """A time of any form: "halb acht", "halb acht abends", "neunzehn Uhr dreißig"."""
    form = rng.randrange(4)
    if form < 2:
        return time(rng)
    if form == 2:
        first, last, _, _ = rng.choice(phrases.PARTS_OF_DAY)
        return one_form(phrases.clock_and_part(rng.randrange(first, last + 1), _minute(rng)))
    return one_form(phrases.timetable(rng.randrange(24), rng.choice((0, 5 * rng.randrange(12), rng.randrange(60)))))


def full_or_half(rng: Random) -> Filler:
    """A full or half hour on the twelve-hour dial."""
    return one_form(phrases.clock(rng.randrange(12), 30 * rng.randrange(2)))


# German and English, before a full or half hour.
_NEAR = (("gegen", "at about"), ("kurz vor", "shortly before"), ("kurz nach", "shortly after"))


def at(rng: Random) -> Filler:
    """When, by the clock: "um halb acht", "um zwanzig Uhr fünf", "kurz nach sieben Uhr"."""
    if rng.randrange(5):
        german, english = clock(rng)
        return one_form((f"um {german}", f"at {english}"))
    german_near, english_near = rng.choice(_NEAR)
    german, english = full_or_half(rng)
    return one_form((f"{german_near} {german}", f"{english_near} {english}"))


def trip(rng: Random) -> Filler:
    """Two different times; forms: "first", "second"."""
    first, second = rng.randrange(12 * 12), rng.randrange(12 * 12 - 1)
    second += second >= first
    german, english = Forms(), Forms()
    for name, n in (("first", first), ("second", second)):
        german[name], english[name] = phrases.clock(n // 12, 5 * (n % 12))
    return german, english


def opening(rng: Random) -> Filler:
    """Opening hours: "von neun Uhr bis halb sechs"."""
    dial = rng.choice((phrases.clock, phrases.timetable))
    first, last = (dial(rng.randrange(*hours), 15 * rng.randrange(4)) for hours in ((6, 13), (13, 24)))
    return one_form((f"von {first[0]} bis {last[0]}", f"from {first[1]} to {last[1]}"))


# ---- Days and years ------------------------------------------------------------------------------


def _some_day(rng: Random, first_year: int = 2000, last_year: int = 2029) -> datetime.date:
    """A real day, so that its weekday and the length of its month are right."""
    first, last = datetime.date(first_year, 1, 1), datetime.date(last_year, 12, 31)
    return datetime.date.fromordinal(rng.randrange(first.toordinal(), last.toordinal() + 1))


def _date(day: datetime.date, *, with_weekday: bool, with_year: bool) -> Filler:
    """A date; German forms: "der", "den", and with its preposition "am"; English: plain and "on"."""
    nominative, english = phrases.date(day, "nominative", with_weekday=with_weekday, with_year=with_year)
    accusative, _ = phrases.date(day, "accusative", with_weekday=with_weekday, with_year=with_year)
    german_on, english_on = phrases.on_date(day, with_weekday=with_weekday, with_year=with_year)
    return Forms(der=nominative, den=accusative, am=german_on), Forms({"": english, "on": english_on})


def date(rng: Random) -> Filler:
    """A date, perhaps with its weekday or year: "Dienstag, der dritte März"."""
    return _date(_some_day(rng), with_weekday=rng.randrange(4) == 0, with_year=rng.randrange(6) == 0)


def day(rng: Random) -> Filler:
    """A date without weekday and year; further German forms: "dem", and with its preposition "zum"."""
    some_day = _some_day(rng)
    german, english = _date(some_day, with_weekday=False, with_year=False)
    german["dem"] = phrases.date(some_day, "dative")[0]
    german["zum"] = f"zum {german['dem'].removeprefix('dem ')}"
    return german, english


def birth(rng: Random) -> Filler:
    """A date with its year: "der dritte März neunzehnhundertvierundachtzig"."""
    return _date(_some_day(rng, 1930, 2020), with_weekday=rng.randrange(5) == 0, with_year=True)


def dates(rng: Random) -> Filler:
    """From one date to another: "vom dritten bis zum fünften März"."""
    first = _some_day(rng)
    last = first + datetime.timedelta(days=rng.randrange(1, 29))
    (german, english), (german_last, english_last) = (
        phrases.date(first, "dative"),
        phrases.date(last, "dative"),
    )
    if first.month == last.month:
        german, english = german.rsplit(" ", 1)[0], english.rsplit(" of ", 1)[0]
    return one_form(
        (
            f"vom {german.removeprefix('dem ')} bis zum {german_last.removeprefix('dem ')}",
            f"from {english} to {english_last}",
        )
    )


def weekday(rng: Random) -> Filler:
    """A weekday's name; "s": on every such day."""
    german, english = phrases.weekday(rng.randrange(7))
    return Forms({"": german, "s": f"{german.lower()}s"}), Forms({"": english, "s": f"on {english}s"})


def on(rng: Random) -> Filler:
    """A day of no tense: "am Montag", "am dritten März", "am Dienstag, dem dritten März,"."""
    if rng.randrange(3):
        german, english = phrases.weekday(rng.randrange(7))
        return one_form((f"am {german}", f"on {english}"))
    return one_form(phrases.on_date(_some_day(rng), with_weekday=rng.randrange(2) == 0))


def past(rng: Random) -> Filler:
    """A day gone by: "gestern", "letzten Montag", "vor drei Tagen"."""
    return _some_time(rng, ("gestern", "yesterday"), ("letzten", "last"), ("vor {}", "{} ago"))


def future(rng: Random) -> Filler:
    """A day to come: "morgen", "nächsten Montag", "in drei Tagen"."""
    return _some_time(rng, ("morgen", "tomorrow"), ("nächsten", "next"), ("in {}", "in {}"))


def _some_time(rng: Random, near: Pair, week: Pair, away: Pair) -> Filler:
    """The nearest day, that of the nearest week, a day some time away, or a day of no tense."""
    form = rng.randrange(6)
    if form == 0:
        return one_form(near)
    if form == 1:
        german, english = phrases.weekday(rng.randrange(7))
        return one_form((f"{week[0]} {german}", f"{week[1]} {english}"))
    if form == 2:
        german, english = phrases.duration(rng.randrange(2, 13), rng.choice(("day", "week", "month")), "dative")
        return one_form((away[0].format(german), away[1].format(english)))
    return on(rng)


# First and last hour of a part of the day that a weekday's name compounds with.
_DAYTIMES = ((6, 10, "morgen", "morning"), (13, 17, "nachmittag", "afternoon"), (18, 22, "abend", "evening"))


def past_moment(rng: Random) -> Filler:
    """Day and hour gone by: "gestern Abend um halb acht", "am Montagmorgen um zehn nach neun"."""
    return _moment(rng, ("gestern", "yesterday"))


def future_moment(rng: Random) -> Filler:
    """Day and hour to come: "morgen früh um halb acht", "am Montagabend um zehn nach neun"."""
    return _moment(rng, ("morgen", "tomorrow"))


def _moment(rng: Random, near: Pair) -> Filler:
    """A part of the nearest day or of a weekday, and a clock time within it."""
    first, last, german_part, english_part = rng.choice(_DAYTIMES)
    time = phrases.clock(rng.randrange(first, last + 1), _minute(rng))
    if rng.randrange(2):
        german, english = phrases.weekday(rng.randrange(7))
        german, english = f"am {german}{german_part}", f"on {english} {english_part}"
    else:
        german_part = "früh" if near[0] == german_part else german_part.capitalize()
        german, english = f"{near[0]} {german_part}", f"{near[1]} {english_part}"
    return one_form((f"{german} um {time[0]}", f"{english} at {time[1]}"))


def year(rng: Random) -> Filler:
    """A year from 1100."""
    return one_form(phrases.year(rng.randrange(1100, 2026)))


def recent(rng: Random) -> Filler:
    """A year that people remember."""
    return one_form(phrases.year(rng.randrange(1950, 2026)))


def years(rng: Random) -> Filler:
    """From one year to another: "von neunzehnhundertvierundachtzig bis zweitausendzehn"."""
    first = rng.randrange(1950, 2010)
    last = first + rng.randrange(1, 16)
    (german, english), (german_last, english_last) = phrases.year(first), phrases.year(last)
    return one_form((f"von {german} bis {german_last}", f"from {english} to {english_last}"))
