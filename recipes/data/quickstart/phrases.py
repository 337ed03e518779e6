"""Numbers, dates, clock times, prices and durations in words: a phrase is a pair (german, english).

num2words writes the numbers and Babel names the months and weekdays. What they leave to the speaker is done
here: inflection by case and gender, the German clock that counts towards the coming hour (*halb acht*), and
English numbers without commas. One German phrase always has the same English.
"""

import datetime
from functools import cache
from typing import Literal

from babel.dates import get_day_names, get_month_names
from num2words import num2words

Pair = tuple[str, str]
Gender = Literal["m", "f", "n"]
Case = Literal["nominative", "accusative", "dative"]

# Articles by case and gender.
DEFINITE: dict[Case, dict[Gender, str]] = {
    "nominative": {"m": "der", "f": "die", "n": "das"},
    "accusative": {"m": "den", "f": "die", "n": "das"},
    "dative": {"m": "dem", "f": "der", "n": "dem"},
}
INDEFINITE: dict[Case, dict[Gender, str]] = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
    "dative": {"m": "einem", "f": "einer", "n": "einem"},
}

# German name: gender, name of the hundredth part, English name, its plural, the plural of the hundredth part.
CURRENCIES: dict[str, tuple[Gender, str, str, str, str]] = {
    "Euro": ("m", "Cent", "euro", "euros", "cents"),
    "Dollar": ("m", "Cent", "dollar", "dollars", "cents"),
    "Pfund": ("n", "Pence", "pound", "pounds", "pence"),
}

# English unit: gender, German singular, plural, plural in the dative.
UNITS: dict[str, tuple[Gender, str, str, str]] = {
    "minute": ("f", "Minute", "Minuten", "Minuten"),
    "hour": ("f", "Stunde", "Stunden", "Stunden"),
    "day": ("m", "Tag", "Tage", "Tagen"),
    "week": ("f", "Woche", "Wochen", "Wochen"),
    "month": ("m", "Monat", "Monate", "Monaten"),
    "year": ("n", "Jahr", "Jahre", "Jahren"),
}


@cache
def cardinal(n: int) -> Pair:
    """A whole number as it is counted: 21 -> ("einundzwanzig", "twenty-one").

    num2words writes 101,000 as "einhunderteinstausend"; the s belongs at the end of a number only. Its
    English has commas, which are dropped.
    """
    german = num2words(n, lang="de").replace("einstausend", "eintausend")
    return german, num2words(n, lang="en_GB").replace(",", "")


@cache
def decimal(whole: int, tenths: int) -> Pair:
    """A number with one decimal: (3, 5) -> ("drei Komma fünf", "three point five")."""
    (german, english), (german_tenths, english_tenths) = cardinal(whole), cardinal(tenths)
    return f"{german} Komma {german_tenths}", f"{english} point {english_tenths}"


@cache
def ordinal(n: int, ending: str = "e") -> Pair:
    """An ordinal with its ending (e, en, er, es): (3, "en") -> ("dritten", "third")."""
    german = num2words(n, lang="de", to="ordinal")
    if n < 1 or not german.endswith("e"):
        raise ValueError(f"ordinals begin at 1, given {n}")
    return german[:-1] + ending, num2words(n, lang="en_GB", to="ordinal")


@cache
def times(n: int) -> Pair:
    """How often: 3 -> ("dreimal", "three times")."""
    german = ("ein" if n == 1 else cardinal(n)[0]) + "mal"
    return german, {1: "once", 2: "twice"}.get(n, f"{cardinal(n)[1]} times")


@cache
def year(n: int) -> Pair:
    """A year: 1984 -> ("neunzehnhundertvierundachtzig", "nineteen eighty-four")."""
    if not 1100 <= n <= 2099:
        raise ValueError(f"years are written from 1100 to 2099, given {n}")
    return num2words(n, lang="de", to="year"), num2words(n, lang="en_GB", to="year").replace("oh-", "oh ")


@cache
def weekday(n: int) -> Pair:
    """Name of a weekday, 0 being Monday."""
    return get_day_names(locale="de")[n], get_day_names(locale="en_GB")[n]


@cache
def month(n: int) -> Pair:
    """Name of a month, 1 being January."""
    return get_month_names(locale="de")[n], get_month_names(locale="en_GB")[n]


@cache
def date(day: datetime.date, case: Case = "nominative", *, with_weekday: bool = False, with_year: bool = False) -> Pair:
    """A date with its article: "der dritte März", "the third of March".

    With the weekday the date is an apposition between commas ("Dienstag, dem dritten März,"); a closing comma
    before the end of a sentence is for the caller to drop.
    """
    german_day, english_day = ordinal(day.day, "e" if case == "nominative" else "en")
    german_month, english_month = month(day.month)
    german = f"{DEFINITE[case]['m']} {german_day} {german_month}"
    english = f"the {english_day} of {english_month}"
    if with_year:
        german_year, english_year = year(day.year)
        german, english = f"{german} {german_year}", f"{english} {english_year}"
    if with_weekday:
        german_weekday, english_weekday = weekday(day.weekday())
        german, english = f"{german_weekday}, {german},", f"{english_weekday} {english}"
    return german, english


@cache
def on_date(day: datetime.date, *, with_weekday: bool = False, with_year: bool = False) -> Pair:
    """On a date: "am dritten März" or "am Dienstag, dem dritten März,"."""
    german, english = date(day, "dative", with_weekday=with_weekday, with_year=with_year)
    return f"am {german if with_weekday else german.removeprefix('dem ')}", f"on {english}"


@cache
def clock(hour: int, minute: int) -> Pair:
    """A time as it is said, on the twelve-hour dial: (7, 30) -> ("halb acht", "half past seven").

    German counts the middle third of the hour from its half: 7:25 is "fünf vor halb acht". Minutes that are
    no multiple of five are named ("drei Minuten nach sieben").
    """
    if not (0 <= hour < 24 and 0 <= minute < 60):
        raise ValueError(f"no time of day: {hour}:{minute:02}")
    german_hour, english_hour = cardinal((hour - 1) % 12 + 1)
    german_next, english_next = cardinal(hour % 12 + 1)
    if minute == 0:
        return ("ein" if german_hour == "eins" else german_hour) + " Uhr", f"{english_hour} o'clock"
    if minute == 15:
        return f"Viertel nach {german_hour}", f"quarter past {english_hour}"
    if minute == 30:
        return f"halb {german_next}", f"half past {english_hour}"
    if minute == 45:
        return f"Viertel vor {german_next}", f"quarter to {english_next}"
    if minute <= 20:
        german = f"{_minutes(minute)[0]} nach {german_hour}"
    elif minute < 30:
        german = f"{_minutes(30 - minute)[0]} vor halb {german_next}"
    elif minute < 40:
        german = f"{_minutes(minute - 30)[0]} nach halb {german_next}"
    else:
        german = f"{_minutes(60 - minute)[0]} vor {german_next}"
    if minute < 30:
        return german, f"{_minutes(minute)[1]} past {english_hour}"
    return german, f"{_minutes(60 - minute)[1]} to {english_next}"


def _minutes(n: int) -> Pair:
    """Minutes before or after an hour; multiples of five go without their unit."""
    if n % 5 == 0:
        return cardinal(n)
    if n == 1:
        return "eine Minute", "one minute"
    return f"{cardinal(n)[0]} Minuten", f"{cardinal(n)[1]} minutes"


# First and last hour, German, English. The hours around noon and midnight have no settled name.
PARTS_OF_DAY = (
    (1, 4, "nachts", "in the morning"),
    (5, 10, "morgens", "in the morning"),
    (13, 17, "nachmittags", "in the afternoon"),
    (18, 22, "abends", "in the evening"),
)


@cache
def clock_and_part(hour: int, minute: int) -> Pair:
    """A time with its part of the day: (19, 30) -> ("halb acht abends", "half past seven in the evening")."""
    for first, last, german_part, english_part in PARTS_OF_DAY:
        if first <= hour <= last:
            german, english = clock(hour, minute)
            return f"{german} {german_part}", f"{english} {english_part}"
    raise ValueError(f"hour {hour} has no settled part of the day")


@cache
def timetable(hour: int, minute: int) -> Pair:
    """A time as it is announced, on the 24-hour dial.

    (19, 30) -> ("neunzehn Uhr dreißig", "seven thirty in the evening"), (0, 0) -> ("null Uhr", "midnight").
    Up to "zwölf Uhr" German leaves the half of the day open, and so does the English.
    """
    if not (0 <= hour < 24 and 0 <= minute < 60):
        raise ValueError(f"no time of day: {hour}:{minute:02}")
    german_hour, english_hour = cardinal(hour)[0], cardinal((hour - 1) % 12 + 1)[1]
    german = ("ein" if hour == 1 else german_hour) + " Uhr"
    if hour == minute == 0:
        return german, "midnight"
    if minute == 0:
        english = f"{english_hour} o'clock"
    else:
        german_minute, english_minute = cardinal(minute)
        german = f"{german} {german_minute}"
        english = f"{english_hour} {'oh ' if minute < 10 else ''}{english_minute}"
    if 13 <= hour <= 17:
        return german, f"{english} in the afternoon"
    if 18 <= hour <= 22:
        return german, f"{english} in the evening"
    if hour in (23, 0):
        return german, f"{english} at night"
    return german, english


@cache
def price(whole: int, cents: int = 0, currency: str = "Euro", case: Case = "accusative", *, full: bool = False) -> Pair:
    """A price: (21, 50) -> ("einundzwanzig Euro fünfzig", "twenty-one euros and fifty cents").

    `full` names the hundredth part in German too ("einundzwanzig Euro und fünfzig Cent"). `cents` is 0 or
    2 to 99; `whole` must not be 101, 201, ... (see `_counted`).
    """
    gender, german_cent, english_one, english_many, english_cents = CURRENCIES[currency]
    if not 0 <= cents <= 99 or cents == 1 or whole < 0 or (whole == 0 and cents == 0):
        raise ValueError(f"no price: {whole} {currency}, {cents} {german_cent}")
    small_german, small_english = (
        f"{cardinal(cents)[0]} {german_cent}",
        f"{cardinal(cents)[1]} {english_cents}",
    )
    if whole == 0:
        return small_german, small_english
    if whole == 1:
        german, english = f"{INDEFINITE[case][gender]} {currency}", f"one {english_one}"
    else:
        german, english = f"{_counted(whole)[0]} {currency}", f"{_counted(whole)[1]} {english_many}"
    if cents == 0:
        return german, english
    return (
        f"{german} {f'und {small_german}' if full else cardinal(cents)[0]}",
        f"{english} and {small_english}",
    )


@cache
def duration(n: int, unit: str, case: Case = "accusative") -> Pair:
    """A length of time: (3, "day", "dative") -> ("drei Tagen", "three days")."""
    gender, one, many, many_dative = UNITS[unit]
    if n == 1:
        return f"{INDEFINITE[case][gender]} {one}", a(unit)
    german, english = _counted(n)
    return f"{german} {many_dative if case == 'dative' else many}", f"{english} {unit}s"


@cache
def hours_and_a_half(n: int, case: Case = "accusative") -> Pair:
    """Hours and a half: 2 -> ("zweieinhalb Stunden", "two and a half hours"), 0 -> "eine halbe Stunde"."""
    if n == 0:
        return ("einer halben Stunde" if case == "dative" else "eine halbe Stunde"), "half an hour"
    german = "anderthalb" if n == 1 else f"{cardinal(n)[0]}einhalb"
    return f"{german} Stunden", f"{cardinal(n)[1]} and a half hours"


def a(words: str) -> str:
    """The English noun phrase with its indefinite article."""
    return f"{'an' if words[0] in 'aeiou' or words.startswith('hour') else 'a'} {words}"


def _counted(n: int) -> Pair:
    """A number before a plural noun; not 101, 201, ...: there German wavers (hunderteins or -ein Tage)."""
    if n < 2 or n % 100 == 1:
        raise ValueError(f"no plural is counted by {n}")
    return cardinal(n)
