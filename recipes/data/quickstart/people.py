"""People as subjects of sentences, and the forms of their verbs."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from recipes.data.quickstart.slots import Filler, Forms, Slot

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
