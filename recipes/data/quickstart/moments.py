"""Clock times, days and years."""

import datetime
from random import Random

from recipes.data.quickstart import phrases
from recipes.data.quickstart.phrases import Pair
from recipes.data.quickstart.slots import Filler, Forms, one_form

# --- clock times --------------------------------------------------------------------------------------------


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


# --- days and years -----------------------------------------------------------------------------------------


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
