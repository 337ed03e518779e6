"""The embedded corpus: German and English sentences about numbers, dates, times and prices, made from a seed.

A sentence is a frame, German beside English, whose slots are filled by `quickstart_slots`. `{slot}` is the
phrase itself, `{slot:form}` one of its inflected forms; a digit after the slot's name makes a second,
independent draw.
Every German sentence has exactly one English one.
"""

import re
from functools import cache
from random import Random
from string import Formatter
from typing import NamedTuple

from recipes.data.quickstart import slots
from recipes.data.quickstart.phrases import Pair
from recipes.data.quickstart.slots import Slot, by_weight

# Change it when a seed comes to give other sentences: corpora made before are out of date then. (The first one is a
# checksum of the code that made them.)
VERSION = "ea53772a5bda560a5b3c2d204727ca2eaa347614848b337fc7deffdd3faaba48"

# Above this the frames with few sentences run dry and the mixture of kinds tilts.
MOST_PAIRS = 100_000


class Sentence(NamedTuple):
    """A sentence pair and the kind of its frame (a key of FRAMES)."""

    kind: str
    german: str
    english: str


SLOTS: dict[str, Slot] = {
    "age": slots.age,
    "at": slots.at,
    "birth": slots.birth,
    "building": slots.nouns(slots.BUILDINGS),
    "change": slots.change,
    "city": lambda rng: slots.one_form(rng.choice(slots.CITIES)),
    "clock": slots.clock,
    "date": slots.date,
    "dates": slots.dates,
    "day": slots.day,
    "decimal": slots.decimal,
    "equation": slots.equation,
    "estate": slots.nouns(slots.ESTATE),
    "event": slots.nouns(slots.EVENTS),
    "fortune": slots.fortune,
    "future": slots.future,
    "future_moment": slots.future_moment,
    "goods": slots.some_goods,
    "inhabitants": slots.inhabitants,
    "later": lambda rng: slots.ordinal(rng, least=2),
    "length": slots.length,
    "minutes": slots.minutes,
    "number": slots.number,
    "on": slots.on,
    "opening": slots.opening,
    "ordinal": slots.ordinal,
    "past": slots.past,
    "past_moment": slots.past_moment,
    "percent": slots.percent,
    "place": slots.nouns(slots.PLACES),
    "price": slots.price,
    "recent": slots.recent,
    "ride": slots.ride,
    "several": slots.several_goods,
    "share": slots.share,
    "single": slots.people(slots.SINGLE),
    "someone": slots.people(slots.OTHERS),
    "time": slots.time,
    "times": slots.times,
    "trade": slots.trade,
    "trip": slots.trip,
    "vehicle": slots.nouns(slots.VEHICLES),
    "ware": slots.ware,
    "weekday": slots.weekday,
    "who": slots.people(slots.PEOPLE),
    "year": slots.year,
    "years": slots.years,
}

# Share of each kind of frame among the sentences drawn, and the frames.
SHARES = {
    "clock": 24,
    "date": 15,
    "price": 20,
    "number": 10,
    "ordinal": 9,
    "year": 6,
    "duration": 8,
    "clause": 8,
}
FRAMES: dict[str, tuple[Pair, ...]] = {
    "clock": (
        ("es ist {clock}.", "it is {clock}."),
        ("es ist schon {clock}.", "it is already {clock}."),
        ("es ist noch nicht {clock}.", "it is not yet {clock}."),
        ("ist es schon {clock}?", "is it already {clock}?"),
        ("{at}.", "{at}."),
        ("nicht vor {time}.", "not before {time}."),
        ("{event:der} beginnt {at}.", "{event:the} begins {at}."),
        ("{event:der} fängt {on} um {time} an.", "{event:the} starts {on} at {time}."),
        ("{on} fängt {event:der} um {time} an.", "{on} {event:the} starts at {time}."),
        ("{event:der} hört {at} auf.", "{event:the} ends {at}."),
        ("{vehicle:der} nach {city} fährt {at} ab.", "{vehicle:the} to {city} leaves {at}."),
        ("{at} fährt {vehicle:der} nach {city} ab.", "{at} {vehicle:the} leaves for {city}."),
        (
            "{on} kommt {vehicle:der} aus {city} erst um {time} an.",
            "{on} {vehicle:the} from {city} does not arrive until {time}.",
        ),
        (
            "fährt {vehicle:der} nach {city} wirklich {at} ab?",
            "does {vehicle:the} to {city} really leave {at}?",
        ),
        ("{place:der} ist {opening} geöffnet.", "{place:the} is open {opening}."),
        (
            "{place:der} ist {weekday:s} {opening} geschlossen.",
            "{place:the} is closed {weekday:s} {opening}.",
        ),
        (
            "{who} {who:stehen} jeden {weekday} um {time} auf.",
            "{who} {who:get} up at {time} every {weekday}.",
        ),
        ("{who} {who:sein} {past} um {time} aufgestanden.", "{who} got up at {time} {past}."),
        ("{who} {who:sein} {past_moment} nach Hause gekommen.", "{who} came home {past_moment}."),
        (
            "{someone:kommen} {someone} {future} um {time} nach Hause?",
            "will {someone} come home at {time} {future}?",
        ),
        ("{who} {who:müssen} {at} am Bahnhof sein.", "{who} must be at the station {at}."),
        ("{who} {who:haben} {past} bis {time} gearbeitet.", "{who} worked until {time} {past}."),
        ("kannst du {future_moment} kommen?", "can you come {future_moment}?"),
    ),
    "date": (
        ("heute ist {date:der}.", "today is {date}."),
        ("wir haben heute {date:den}.", "today is {date}."),
        ("gestern war {date:der}.", "yesterday was {date}."),
        ("ist heute {day:der}?", "is it {day} today?"),
        ("spätestens {day:am}.", "{day:on} at the latest."),
        ("{date:am}.", "{date:on}."),
        ("{single} {single:haben} {day:am} Geburtstag.", "{single:whose} birthday is {day:on}."),
        ("{single} {single:wurde} {birth:am} geboren.", "{single} {single:was} born {birth:on}."),
        ("wurde {someone} {birth:am} geboren?", "was {someone} born {birth:on}?"),
        ("{event:der} findet {date:am} statt.", "{event:the} takes place {date:on}."),
        ("{date:am} findet {event:der} statt.", "{date:on} {event:the} takes place."),
        ("{place:der} ist {dates} geschlossen.", "{place:the} is closed {dates}."),
        ("{dates} {who:sein} {who} in {city}.", "{dates} {who} {who:be} in {city}."),
        ("{who} {who:sein} seit {day:dem} in {city}.", "{who} {who:have} been in {city} since {day}."),
        ("{who} {who:fahren} {future} nach {city}.", "{who} {who:be} going to {city} {future}."),
        ("{future} {who:werden} {who} nach {city} fahren.", "{future} {who} will go to {city}."),
        ("die Rechnung muss bis {day:zum} bezahlt werden.", "the bill must be paid by {day}."),
        (
            "die Ferien beginnen {day1:am} und enden {day2:am}.",
            "the holidays begin {day1:on} and end {day2:on}.",
        ),
    ),
    "price": (
        ("{ware:der} kostet {price}.", "{ware:the} costs {price}."),
        ("{ware:der} kostet heute nur {price}.", "{ware:the} costs only {price} today."),
        ("{ware:der} hat {price} gekostet.", "{ware:the} cost {price}."),
        ("kostet {ware:der} wirklich {price}?", "does {ware:the} really cost {price}?"),
        ("{several} kosten {price}.", "{several} cost {price}."),
        ("das macht {price}.", "that comes to {price}."),
        ("{price}, bitte.", "{price}, please."),
        ("{goods}, bitte.", "{goods}, please."),
        ("das kostet nur {price}.", "that costs only {price}."),
        ("kostet das {price}?", "does that cost {price}?"),
        ("{who} {who:haben} für {ware:den} {price} bezahlt.", "{who} paid {price} for {ware:the}."),
        ("für {goods} {who:haben} {who} {price} bezahlt.", "for {goods} {who} paid {price}."),
        ("{who} {who:müssen} noch {price} bezahlen.", "{who} still {who:have} to pay {price}."),
        ("{who} {who:mögen} {goods} für {price} verkaufen.", "{who} would like to sell {goods} for {price}."),
        ("{who} {who:haben} {past} {price} verloren.", "{who} lost {price} {past}."),
        ("der Preis ist {change:up} gestiegen.", "the price has risen {change:up}."),
        ("der Preis ist {past} {change:down} gesunken.", "the price fell {change:down} {past}."),
        ("{estate:der} kostet {fortune}.", "{estate:the} costs {fortune}."),
        ("{who} {who:haben} {estate:den} für {fortune} gekauft.", "{who} bought {estate:the} for {fortune}."),
    ),
    "number": (
        ("{equation}.", "{equation}."),
        ("{equation}.", "{equation}."),
        ("{city} hat {inhabitants} Einwohner.", "{city} has {inhabitants} inhabitants."),
        ("in der Stadt leben {inhabitants} Menschen.", "{inhabitants} people live in the town."),
        ("das Buch hat {number} Seiten.", "the book has {number} pages."),
        ("auf Seite {number}.", "on page {number}."),
        ("{single} {single:sein} {age} Jahre alt.", "{single} {single:be} {age} years old."),
        ("die Antwort ist {number}.", "the answer is {number}."),
        ("{who} {who:wohnen} in Zimmer {number}.", "{who} {who:live} in room {number}."),
        ("der Weg ist {decimal} Kilometer lang.", "the path is {decimal} kilometres long."),
        ("{share} Gästen sind {past} gekommen.", "{share} guests came {past}."),
        ("{percent} der Gäste kamen aus {city}.", "{percent} of the guests came from {city}."),
    ),
    "ordinal": (
        ("{who} {who:wohnen} im {ordinal:en} Stock.", "{who} {who:live} on the {ordinal} floor."),
        (
            "{who} {who:sein} zum {ordinal:en} Mal in {city}.",
            "{who} {who:be} in {city} for the {ordinal} time.",
        ),
        (
            "{who} {who:lesen} gerade das {ordinal:e} Kapitel.",
            "{who} {who:be} reading the {ordinal} chapter.",
        ),
        (
            "{day:am} {single:feiern} {single} {single:his} {ordinal:en} Geburtstag.",
            "{day:on} {single} {single:celebrate} {single:his} {ordinal} birthday.",
        ),
        (
            "{who} {who:haben} die {ordinal:e} Frage nicht verstanden.",
            "{who} did not understand the {ordinal} question.",
        ),
        ("jeder {later:e} Gast bekommt {ware:einen}.", "every {later} guest gets {ware:a}."),
        ("{who} {who:haben} den {ordinal:en} Platz belegt.", "{who} took {ordinal} place."),
        ("das ist mein {ordinal:er} Versuch.", "that is my {ordinal} attempt."),
        ("es ist die {ordinal:e} Straße links.", "it is the {ordinal} street on the left."),
        ("im {ordinal:en} Stock.", "on the {ordinal} floor."),
        ("zum {ordinal:en} Mal.", "for the {ordinal} time."),
    ),
    "year": (
        ("{building:der} wurde {year} gebaut.", "{building:the} was built in {year}."),
        ("{year} wurde {building:der} gebaut.", "in {year} {building:the} was built."),
        (
            "im Jahr {year} gab es {building:den} noch nicht.",
            "in the year {year} {building:the} did not yet exist.",
        ),
        ("{who} {who:wohnen} seit {recent} in {city}.", "{who} {who:have} lived in {city} since {recent}."),
        ("{who} {who:sein} {recent} nach {city} gezogen.", "{who} moved to {city} in {recent}."),
        ("das war {year}.", "that was in {year}."),
        ("{years} {who:haben} {who} in {city} gearbeitet.", "{years} {who} worked in {city}."),
        (
            "im Jahr {recent} {who:haben} {who} {estate:den} gekauft.",
            "in the year {recent} {who} bought {estate:the}.",
        ),
    ),
    "duration": (
        ("die Fahrt nach {city} dauert {ride}.", "the journey to {city} takes {ride}."),
        ("in {ride:dat} beginnt {event:der}.", "in {ride} {event:the} begins."),
        ("{event:der} dauert {ride}.", "{event:the} lasts {ride}."),
        (
            "{who} {who:warten} seit {ride:dat} auf {vehicle:den}.",
            "{who} {who:have} been waiting for {vehicle:the} for {ride}.",
        ),
        ("{who} {who:sein} vor {length:dat} nach {city} gefahren.", "{who} went to {city} {length} ago."),
        ("{who} {who:sein} {length} in {city} geblieben.", "{who} stayed in {city} for {length}."),
        ("vor {length:dat}.", "{length} ago."),
        ("in {ride:dat}.", "in {ride}."),
        ("{vehicle:der} hat {minutes} Minuten Verspätung.", "{vehicle:the} is {minutes} minutes late."),
        ("{who} {who:gehen} {times} im Monat schwimmen.", "{who} {who:go} swimming {times} a month."),
    ),
    "clause": (
        ("{past} {who:haben} {who} um {time} {goods} {trade}.", "{past} {who} {trade} {goods} at {time}."),
        ("{who} {who:haben} {past_moment} {goods} {trade}.", "{who} {trade} {goods} {past_moment}."),
        (
            "{who} {who:wollen} {future} {goods} {trade:inf}.",
            "{who} {who:want} to {trade:inf} {goods} {future}.",
        ),
        (
            "{event:der}, {event:rel} um {time} beginnt, kostet {price}.",
            "{event:the} that begins at {time} costs {price}.",
        ),
        (
            "{vehicle:der}, {vehicle:rel} {at} abfährt, kostet {price}.",
            "{vehicle:the} that leaves {at} costs {price}.",
        ),
        (
            "{who} {who:haben} {several} gekauft, die zusammen {price} gekostet haben.",
            "{who} bought {several} that cost {price} altogether.",
        ),
        (
            "{who} {who:sagen}, dass {vehicle:der} aus {city} {at} ankommt.",
            "{who} {who:say} that {vehicle:the} from {city} arrives {at}.",
        ),
        (
            "{who} {who:glauben}, dass {ware:der} {price} kostet.",
            "{who} {who:think} that {ware:the} costs {price}.",
        ),
        (
            "{who} {who:fragen}, ob {event:der} {date:am} stattfindet.",
            "{who} {who:ask} whether {event:the} takes place {date:on}.",
        ),
        (
            "wenn {vehicle:der} um {trip:first} abfährt, {who:kommen} {who} um {trip:second} an.",
            "if {vehicle:the} leaves at {trip:first}, {who} will arrive at {trip:second}.",
        ),
        (
            "weil {vehicle:der} {minutes} Minuten Verspätung hat, {who:kommen} {who} erst um {time} an.",
            "because {vehicle:the} is {minutes} minutes late, {who} will not arrive until {time}.",
        ),
        (
            "{who} {who:wissen} nicht, ob {ware:der} wirklich {price} kostet.",
            "{who} {who:do} not know whether {ware:the} really costs {price}.",
        ),
    ),
}


def generate(seed: int, sizes: dict[str, int]) -> dict[str, list[Pair]]:
    """Draw distinct sentence pairs for the splits named in `sizes`.

    The outcome depends on the arguments alone. No German sentence occurs twice, within a split or across
    splits, and all splits have the same mixture of kinds. Returns (german, english) pairs by split; raises
    ValueError when a size is negative or all of them together exceed MOST_PAIRS.
    """
    total = sum(sizes.values())
    if min(sizes.values(), default=0) < 0:
        raise ValueError(f"sizes must not be negative, given {sizes}")
    if total > MOST_PAIRS:
        raise ValueError(f"the quickstart corpus has at most {MOST_PAIRS:,} distinct pairs, asked for {total:,}")
    rng = Random(seed)
    distinct: dict[str, str] = {}
    while len(distinct) < total:
        sentence = draw(rng)
        distinct[sentence.german] = sentence.english
    pairs = list(distinct.items())
    # Frames with few sentences thin out as the draw goes on: only shuffled are the splits alike.
    rng.shuffle(pairs)
    ends = [sum(list(sizes.values())[: i + 1]) for i in range(len(sizes))]
    return {split: pairs[end - sizes[split] : end] for split, end in zip(sizes, ends, strict=True)}


def draw(rng: Random) -> Sentence:
    """Draw one sentence pair: a kind by its share, one of its frames, then its slots."""
    kind = by_weight(rng, SHARES)
    german, english = fill(rng, *rng.choice(FRAMES[kind]))
    return Sentence(kind, german, english)


def fill(rng: Random, german: str, english: str) -> Pair:
    """Draw a frame's slots, in the order of the German, and write out both sentences."""
    fillers = {name: SLOTS[name.rstrip("0123456789")](rng) for name in _slots(german)}
    return (
        _finish(german.format(**{name: filler[0] for name, filler in fillers.items()})),
        _finish(english.format(**{name: filler[1] for name, filler in fillers.items()})),
    )


@cache
def _slots(frame: str) -> tuple[str, ...]:
    """Names of a frame's slots, each once, in order."""
    return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(frame) if name))


def _finish(text: str) -> str:
    """Drop an apposition's closing comma before other punctuation; begin with a capital."""
    text = re.sub(r",(?=[.,?])", "", text)
    return text[0].upper() + text[1:]
