"""Numbers, prices and lengths of time."""

from collections.abc import Callable
from random import Random

from recipes.data.quickstart import phrases
from recipes.data.quickstart.phrases import Case, Pair
from recipes.data.quickstart.slots import Filler, Forms, by_weight, one_form, size


def _amount(rng: Random) -> tuple[int, int]:
    """An amount of money: whole units, hundredths."""
    cents = rng.choice((0, 0, 5 * rng.randrange(1, 20), rng.randrange(2, 100)))
    if cents and rng.randrange(15) == 0:
        return 0, cents
    return (1 if rng.randrange(12) == 0 else size(rng, (4, 2, 12), (5, 13, 99), (1, 100, 999))), cents


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
    return 1000 * rng.randrange(1, 100) + size(rng, (1, 2, 99), (4, 100, 999))


def number(rng: Random) -> Filler:
    """A number that counts something, 2 to 999."""
    return one_form(phrases.cardinal(size(rng, (2, 2, 12), (6, 13, 99), (2, 100, 999))))


def age(rng: Random) -> Filler:
    """An age in years."""
    return one_form(phrases.cardinal(rng.randrange(2, 100)))


def decimal(rng: Random) -> Filler:
    """A number with one decimal."""
    return one_form(phrases.decimal(rng.randrange(100), rng.randrange(1, 10)))


def share(rng: Random) -> Filler:
    """Some of many: "drei von zwanzig"."""
    many = size(rng, (3, 10, 99), (2, 100, 999))
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
