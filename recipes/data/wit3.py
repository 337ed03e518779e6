"""Reader of WIT3's formats, in which the IWSLT evaluation campaigns gave TED talks (Cettolo et al., EAMT 2012).

train.tags.PAIR.LANG holds a line a sentence, with a header of lines in tags before each talk; SET.PAIR.LANG.xml
holds a development or test set as <mteval> with a <doc> a talk and a <seg> a sentence. Both sides of a set must
have the same talks with as many sentences each; anything else is refused with its file and line.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any
from xml.parsers import expat

from recipes.console.messages import say
from recipes.data.archives import ENDINGS, Member, read_members
from recipes.data.text_files import Pairs, decode, lines_of
from thoth_core.errors import UserError

# As in fairseq's prepare-iwslt14.sh and prepare-iwslt17-multilingual.sh: title and description are translated and
# count as sentences of their talk, the other lines of a header are dropped.
TEXT_TAGS = ("title", "description")
OTHER_TAGS = ("url", "keywords", "speaker", "talkid", "reviewer", "translator", "transcript")
FRAME_TAGS = ("doc", "transcript")  # may also stand alone, opening or closing
INLINE_TAGS = ("a", "b", "br", "em", "font", "i", "s", "small", "span", "strong", "sub", "sup", "u")  # part of the text
SETS = ("srcset", "refset", "tstset")

_FRAME = re.compile(rf"</?({'|'.join(FRAME_TAGS)})(\s[^<>]*)?>")
_HEADER = re.compile(rf"<({'|'.join(TEXT_TAGS + OTHER_TAGS)})(?:\s[^<>]*)?>(.*)</\1>")
_KNOWN = re.compile(rf"</?({'|'.join(sorted({*TEXT_TAGS, *OTHER_TAGS, *FRAME_TAGS, 'seg'}))})(\s[^<>]*)?>")
_LEADING = re.compile(r"</?([A-Za-z][\w-]*)(\s[^<>]*)?/?>")


@dataclass
class Talk:
    """One talk in one language."""

    name: str
    line: int  # of its file, where it begins
    sentences: list[str] = field(default_factory=list)


def wanted_names(corpus: dict[str, Any]) -> set[str]:
    """Names of the files that can be used: those of the corpus in either naming of its pair, and archives of them."""
    names = set()
    for pair in _pairs(corpus):
        names |= {f"train.tags.{pair}.{language}" for language in pair.split("-")}
        for text in _sets(corpus):
            names |= {f"{name}.{pair}.{language}.xml" for name in parts(text) for language in pair.split("-")}
        names |= {pair + ending for ending in ENDINGS}
    return names


def _pairs(corpus: dict[str, Any]) -> tuple[str, str]:
    """The pair as the archive names it, and the other way round: some releases have the same texts twice."""
    pair = corpus["wit3"]["pair"]
    return pair, "-".join(reversed(pair.split("-")))


def _sets(corpus: dict[str, Any]) -> list[str]:
    """The validation set, unless it is taken from the training text, and the test sets."""
    valid, tests = corpus["wit3"]["valid"], corpus["wit3"]["test"]
    return [*([valid] if valid and not corpus["valid"]["every"] else []), *tests]


def parts(text: str) -> list[str]:
    """The sets that `A + B`, one set in a corpus file, is put together from."""
    return [part.strip() for part in text.split("+")]


def read(place: Path, corpus: dict[str, Any]) -> dict[str, list[Pairs]]:
    """{"train": [one], "valid": [one or none], "test": [...]} from an archive or folder, with a talk's id a pair."""
    members, pair = _members(place, corpus)
    languages = corpus["source"], corpus["target"]

    def read_set(text: str) -> Pairs:
        return joined([_read_xml(members, f"{name}.{pair}", languages, place) for name in parts(text)])

    train = [_read_train(members, f"train.tags.{pair}", languages, place)]
    sets = [read_set(text) for text in _sets(corpus)]
    tests = len(corpus["wit3"]["test"])
    return {"train": train, "valid": sets[:-tests], "test": sets[-tests:]}


def _members(place: Path, corpus: dict[str, Any]) -> tuple[dict[str, Member], str]:
    """The files of the corpus in `place` or in an archive inside it, and the pair as their names have it."""
    wanted = wanted_names(corpus)
    members, names = read_members(place, wanted.__contains__)
    for pair in _pairs(corpus):
        found = members
        inner = [name for ending in ENDINGS if (name := pair + ending) in members]
        if not _has_train(found, pair) and inner:
            found, names = read_members(members[inner[0]], wanted.__contains__)
        if _has_train(found, pair):
            return found, pair
    pair = corpus["wit3"]["pair"]
    held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
    raise UserError(
        f"{place}: holds no train.tags.{pair}.{pair.split('-')[0]}, but {held}; give WIT3's archive or folder of this "
        "pair (for a copy of a hub data set: --reader hub)"
    )


def _has_train(members: dict[str, Member], pair: str) -> bool:
    return any(f"train.tags.{pair}.{language}" in members for language in pair.split("-"))


def _sides(members: dict[str, Member], names: Sequence[str], place: Path) -> list[Member]:
    for name in names:
        if name not in members:
            raise UserError(f"{place}: holds no {name}; give the complete archive or folder of this pair")
    return [members[name] for name in names]


def _read_train(members: dict[str, Member], stem: str, languages: tuple[str, str], place: Path) -> Pairs:
    sides = _sides(members, [f"{stem}.{language}" for language in languages], place)
    return _aligned(stem, sides, [train_talks(side.content, side.origin) for side in sides])


def _read_xml(members: dict[str, Member], stem: str, languages: tuple[str, str], place: Path) -> Pairs:
    sides = _sides(members, [f"{stem}.{language}.xml" for language in languages], place)
    return _aligned(stem, sides, [xml_talks(side.content, side.origin) for side in sides])


# --- both sides ---------------------------------------------------------------------------------------------


def _aligned(title: str, sides: Sequence[Member], talks: Sequence[list[Talk]]) -> Pairs:
    origins = sides[0].origin, sides[1].origin
    for source, target in zip_longest(*talks):
        if source is None or target is None:
            present, side = (source, 0) if source else (target, 1)
            raise UserError(
                f"{origins[side]}, line {present.line}: talk {present.name} has no counterpart in {origins[1 - side]}, "
                f"which has {min(map(len, talks)):,} talks; give files of the same talks"
            )
        where = f"{origins[0]}, line {source.line}"
        if source.name != target.name:
            raise UserError(
                f"{where}: is talk {source.name}, but {origins[1]}, line {target.line}, is talk {target.name}; "
                "give files of the same talks in the same order"
            )
        if len(source.sentences) != len(target.sentences):
            raise UserError(
                f"{where}: talk {source.name} has {len(source.sentences):,} sentences, but "
                f"{len(target.sentences):,} in {origins[1]}, line {target.line}; mend that talk"
            )
    lines = [[line for talk in side for line in talk.sentences] for side in talks]
    documents = [talk.name for talk in talks[0] for _ in talk.sentences]
    say(f"{title}: {len(talks[0]):,} talks, {len(documents):,} sentence pairs")
    return Pairs(lines[0], lines[1], origins, documents)


def joined(sets: Sequence[Pairs]) -> Pairs:
    """Several sets as one."""
    if len(sets) == 1:
        return sets[0]
    return Pairs(
        [line for text in sets for line in text.source],
        [line for text in sets for line in text.target],
        (" + ".join(text.origins[0] for text in sets), " + ".join(text.origins[1] for text in sets)),
        [name for text in sets for name in text.documents or ()],
    )


# --- train.tags.PAIR.LANG -----------------------------------------------------------------------------------


def train_talks(content: bytes, origin: str) -> list[Talk]:
    """The talks of a train.tags file. Characters stay as they are: the format escapes none."""
    if not content:
        raise UserError(f"{origin}: is empty; give the official file")
    talks: list[Talk] = []
    header: Talk | None = None  # of the talk that the lines of tags before this one announce
    for number, raw in enumerate(lines_of(content, origin), 1):
        line = raw.strip()
        where = f"{origin}, line {number}"
        tag = _HEADER.fullmatch(line)
        if tag or _FRAME.fullmatch(line):
            header = header or Talk("", number)
            if tag and tag[1] == "talkid":
                _refuse_second(header, where)
                header.name = _talk_name(tag[2].strip(), where)
            elif tag and tag[1] in TEXT_TAGS:
                header.sentences.append(tag[2].strip())
            continue
        _refuse_stray(line, where)
        if header is not None:
            if not header.name:
                raise UserError(f"{origin}, line {header.line}: a talk without <talkid> begins; add its number")
            talks.append(header)
            header = None
        if not talks:
            raise UserError(f"{where}: a sentence before the first talk's <talkid>; give the official file")
        talks[-1].sentences.append(line)
    if header is not None and (header.name or header.sentences):
        raise UserError(f"{origin}, line {header.line}: talk {header.name} has no sentence; is the file cut off?")
    return talks


def _talk_name(text: str, where: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise UserError(f"{where}: a talk's id must be a number or word, but is '{text[:40]}'; mend it")
    return text


def _refuse_second(header: Talk, where: str) -> None:
    if header.name:
        raise UserError(f"{where}: a second talk begins, but talk {header.name} has no sentence; remove its header")


def _refuse_stray(line: str, where: str) -> None:
    if stray := _KNOWN.search(line):
        raise UserError(
            f"{where}: stray {stray[0][:40]}; a tag must open and close on a line of its own: mend that line"
        )
    if (stray := _LEADING.match(line)) and stray[1].lower() not in INLINE_TAGS:
        raise UserError(f"{where}: stray {stray[0][:40]}, which is no tag of this format; mend that line")


# --- SET.PAIR.LANG.xml --------------------------------------------------------------------------------------


def xml_talks(content: bytes, origin: str) -> list[Talk]:
    """The talks of a development or test set. Entities of XML itself (&amp; and so on) become their characters.

    Departs from fairseq's prepare-iwslt14.sh, which takes the text between the tags as it stands and turns a
    typographic apostrophe into a plain one.
    """
    text = decode(content, origin)
    parser = _SetParser(origin)
    parser.parse(text)
    if not parser.talks:
        raise UserError(f"{origin}: holds no <doc>; give the official file")
    return parser.talks


class _SetParser:
    """expat's events to talks. Declarations are refused: official files have none, and entities can swell."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.talks: list[Talk] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self._expat = expat.ParserCreate("UTF-8")
        self._expat.StartElementHandler = self._start
        self._expat.EndElementHandler = self._end
        self._expat.CharacterDataHandler = self._characters
        self._expat.StartDoctypeDeclHandler = self._doctype

    def parse(self, text: str) -> None:
        try:
            self._expat.Parse(text.encode(), True)
        except expat.ExpatError as error:
            problem = expat.ErrorString(error.code)
            raise UserError(
                f"{self.origin}, line {error.lineno}: is not well-formed XML ({problem}); mend it or copy it again"
            ) from None

    def _refuse(self, problem: str) -> None:
        raise UserError(f"{self.origin}, line {self._expat.CurrentLineNumber}: {problem}")

    def _doctype(self, *_: object) -> None:
        self._refuse("declares a document type or entities, which no official file does; remove the declaration")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        depth = len(self._path)
        if depth <= 3:
            self._refuse_text(f"<{name}>")
        expected = {0: ("mteval",), 1: SETS, 2: ("doc",)}.get(depth)
        if expected and name not in expected:
            self._refuse(f"<{name}> where <{'> or <'.join(expected)}> must be; give the official file")
        if depth == 1 and self.talks:
            self._refuse("a second set begins; give one set a file")
        if depth == 2:
            if not attributes.get("docid"):
                self._refuse("<doc> has no docid; add the talk's number")
            where = f"{self.origin}, line {self._expat.CurrentLineNumber}"
            self.talks.append(Talk(_talk_name(attributes["docid"], where), self._expat.CurrentLineNumber))
        if depth == 3 and name == "seg":
            expected_id = str(len(self.talks[-1].sentences) + 1)
            if "id" not in attributes:
                self._refuse(f'<seg> has no id; it must be id="{expected_id}"')
            if attributes["id"].strip() != expected_id:
                self._refuse(
                    f'<seg id="{attributes["id"][:20]}"> where id="{expected_id}" must be: a segment is missing, '
                    "doubled or out of order; mend the talk"
                )
        if depth > 3:
            self._refuse(f"stray <{name}> inside <{self._path[-1]}>; remove it")
        self._path.append(name)
        self._text.clear()

    def _end(self, name: str) -> None:
        self._path.pop()
        depth = len(self._path)
        if depth == 3 and name == "seg":
            self.talks[-1].sentences.append(" ".join("".join(self._text).split()))
        elif depth < 3:
            self._refuse_text(f"</{name}>")
        if name == "doc" and not self.talks[-1].sentences:
            self._refuse(f"talk {self.talks[-1].name} has no <seg>; give the official file")
        self._text.clear()

    def _refuse_text(self, tag: str) -> None:
        if stray := "".join(self._text).strip():
            self._refuse(f"text outside of any tag before {tag} ('{stray[:20]}'); mend it")

    def _characters(self, text: str) -> None:
        self._text.append(text)
