"""Reader of WIT3's formats, in which the IWSLT campaigns distributed TED documents (Cettolo et al., EAMT 2012).

A document is one document. train.tags.PAIR.LANG has one sentence per line, and a header of lines in tags before each
document. SET.PAIR.LANG.xml has a development or test set as <mteval> with one <doc> per document and one <seg> per
sentence. Both sides of a set must have the same documents with as many sentences each. Anything else is refused with
its file and line.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from xml.parsers import expat

from recipes.config.corpora import CorpusSettings
from recipes.console.messages import say
from recipes.data.archives import ENDINGS, Member, read_members
from recipes.data.pairs import Pairs
from recipes.data.text_files import decode, lines_of
from thoth_core.errors import UserError

# As in fairseq's prepare-iwslt14.sh and prepare-iwslt17-multilingual.sh: title and description are translated and
# count as sentences of their document, the other lines of a header are dropped.
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
class Document:
    """One document in one language."""

    name: str
    line: int  # the line of its file where it begins
    sentences: list[str] = field(default_factory=list)


def wanted_names(corpus: CorpusSettings) -> set[str]:
    """Names of usable files: those of the corpus, with its pair named in either order, and archives of them."""
    names = set()
    for pair in _pair_names(corpus):
        names |= {f"train.tags.{pair}.{language}" for language in pair.split("-")}
        for text in _sets(corpus):
            names |= {f"{name}.{pair}.{language}.xml" for name in parts(text) for language in pair.split("-")}
        names |= {pair + ending for ending in ENDINGS}
    return names


def _pair_names(corpus: CorpusSettings) -> tuple[str, str]:
    """The pair as the archive names it, and the other way round: some releases have the same texts twice."""
    assert corpus.wit3.pair is not None
    first, second = corpus.wit3.pair.split("-")
    return f"{first}-{second}", f"{second}-{first}"


def _sets(corpus: CorpusSettings) -> list[str]:
    """The validation set, unless it is taken from the training text, and the test sets."""
    valid = corpus.wit3.valid
    return [*([valid] if valid and not corpus.valid.every else []), *corpus.wit3.test]


def parts(text: str) -> list[str]:
    """The sets in `A + B`, which a corpus file uses as one set."""
    return [part.strip() for part in text.split("+")]


def read(location: Path, corpus: CorpusSettings) -> dict[str, list[Pairs]]:
    """The splits in an archive or folder: {"train": [one], "valid": [one or none], "test": [one or more]}.

    Each pair has the id of its document.
    """
    members, pair = _members(location, corpus)

    def read_set(text: str) -> Pairs:
        return joined([_read_xml(members, f"{name}.{pair}", corpus.languages, location) for name in parts(text)])

    train = [_read_train(members, f"train.tags.{pair}", corpus.languages, location)]
    sets = [read_set(text) for text in _sets(corpus)]
    tests = len(corpus.wit3.test)
    return {"train": train, "valid": sets[:-tests], "test": sets[-tests:]}


def _members(location: Path, corpus: CorpusSettings) -> tuple[dict[str, Member], str]:
    """The files of the corpus in `location` or in an archive inside it, and the pair as their names have it."""
    wanted = wanted_names(corpus)
    members, names = read_members(location, wanted.__contains__)
    pairs = _pair_names(corpus)
    for pair in pairs:
        files = members
        inner = [name for ending in ENDINGS if (name := pair + ending) in members]
        if not _has_train(files, pair) and inner:
            files, names = read_members(members[inner[0]], wanted.__contains__)
        if _has_train(files, pair):
            return files, pair
    present = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
    raise UserError(
        f"{location}: contains no train.tags.{pairs[0]}.{pairs[0].split('-')[0]}, but {present}; give WIT3's archive "
        "or folder of this pair (for a copy of a hub data set: --reader hub)"
    )


def _has_train(members: dict[str, Member], pair: str) -> bool:
    return any(f"train.tags.{pair}.{language}" in members for language in pair.split("-"))


def _sides(members: dict[str, Member], names: Sequence[str], location: Path) -> list[Member]:
    for name in names:
        if name not in members:
            raise UserError(f"{location}: contains no {name}; give the complete archive or folder of this pair")
    return [members[name] for name in names]


def _read_train(members: dict[str, Member], stem: str, languages: tuple[str, str], location: Path) -> Pairs:
    sides = _sides(members, [f"{stem}.{language}" for language in languages], location)
    return _aligned(stem, sides, [train_documents(side.content, side.origin) for side in sides])


def _read_xml(members: dict[str, Member], stem: str, languages: tuple[str, str], location: Path) -> Pairs:
    sides = _sides(members, [f"{stem}.{language}.xml" for language in languages], location)
    return _aligned(stem, sides, [xml_documents(side.content, side.origin) for side in sides])


# --- both sides ---------------------------------------------------------------------------------------------


def _aligned(title: str, sides: Sequence[Member], documents: Sequence[list[Document]]) -> Pairs:
    """The pairs of a set from the documents of both sides, which must correspond."""
    origins = sides[0].origin, sides[1].origin
    for source, target in zip_longest(*documents):
        if source is None or target is None:
            present, side = (source, 0) if source else (target, 1)
            raise UserError(
                f"{origins[side]}, line {present.line}: document {present.name} has no counterpart in "
                f"{origins[1 - side]}, which has {min(map(len, documents)):,} documents; give files of "
                "the same documents"
            )
        where = f"{origins[0]}, line {source.line}"
        if source.name != target.name:
            raise UserError(
                f"{where}: is document {source.name}, but {origins[1]}, line {target.line}, is document {target.name}; "
                "give files of the same documents in the same order"
            )
        if len(source.sentences) != len(target.sentences):
            raise UserError(
                f"{where}: document {source.name} has {len(source.sentences):,} sentences, but "
                f"{len(target.sentences):,} in {origins[1]}, line {target.line}; correct that document"
            )
    lines = [[line for document in side for line in document.sentences] for side in documents]
    names = [document.name for document in documents[0] for _ in document.sentences]
    say(f"{title}: {len(documents[0]):,} documents, {len(names):,} sentence pairs")
    return Pairs(lines[0], lines[1], origins, names)


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


def train_documents(content: bytes, origin: str) -> list[Document]:
    """The documents of a train.tags file. Characters stay as they are: the format escapes none."""
    if not content:
        raise UserError(f"{origin}: is empty; give the official file")
    documents: list[Document] = []
    header: Document | None = None  # the document that the preceding lines of tags announce
    for number, raw in enumerate(lines_of(content, origin), 1):
        line = raw.strip()
        where = f"{origin}, line {number}"
        tag = _HEADER.fullmatch(line)
        if tag or _FRAME.fullmatch(line):
            header = header or Document("", number)
            if tag and tag[1] == "talkid":
                _refuse_second(header, where)
                header.name = _document_name(tag[2].strip(), where)
            elif tag and tag[1] in TEXT_TAGS:
                header.sentences.append(tag[2].strip())
            continue
        _refuse_stray(line, where)
        if header is not None:
            if not header.name:
                raise UserError(f"{origin}, line {header.line}: a document without <talkid> begins; add its number")
            documents.append(header)
            header = None
        if not documents:
            raise UserError(f"{where}: a sentence before the first document's <talkid>; give the official file")
        documents[-1].sentences.append(line)
    if header is not None and (header.name or header.sentences):
        raise UserError(f"{origin}, line {header.line}: document {header.name} has no sentence; is the file cut off?")
    return documents


def _document_name(text: str, where: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise UserError(f"{where}: a document's id must be a number or word, but is '{text[:40]}'; correct it")
    return text


def _refuse_second(header: Document, where: str) -> None:
    if header.name:
        raise UserError(
            f"{where}: a second document begins, but document {header.name} has no sentence; remove its header"
        )


def _refuse_stray(line: str, where: str) -> None:
    if stray := _KNOWN.search(line):
        raise UserError(
            f"{where}: stray {stray[0][:40]}; a tag must open and close on a line of its own: correct that line"
        )
    if (stray := _LEADING.match(line)) and stray[1].lower() not in INLINE_TAGS:
        raise UserError(f"{where}: stray {stray[0][:40]}, which is no tag of this format; correct that line")


# --- SET.PAIR.LANG.xml --------------------------------------------------------------------------------------


def xml_documents(content: bytes, origin: str) -> list[Document]:
    """The documents of a development or test set. Entities of XML itself (&amp; and so on) become their characters.

    Departs from fairseq's prepare-iwslt14.sh, which keeps entities and turns a typographic apostrophe into a
    plain one.
    """
    text = decode(content, origin)
    parser = _SetParser(origin)
    parser.parse(text)
    if not parser.documents:
        raise UserError(f"{origin}: contains no <doc>; give the official file")
    return parser.documents


class _SetParser:
    """expat's events to documents. Declarations are refused: official files have none, and entities can swell."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.documents: list[Document] = []
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
                f"{self.origin}, line {error.lineno}: is not well-formed XML ({problem}); correct it or copy it again"
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
        if depth == 1 and self.documents:
            self._refuse("a second set begins; give each set a file of its own")
        if depth == 2:
            if not attributes.get("docid"):
                self._refuse("<doc> has no docid; add the document's number")
            where = f"{self.origin}, line {self._expat.CurrentLineNumber}"
            self.documents.append(Document(_document_name(attributes["docid"], where), self._expat.CurrentLineNumber))
        if depth == 3 and name == "seg":
            expected_id = str(len(self.documents[-1].sentences) + 1)
            if "id" not in attributes:
                self._refuse(f'<seg> has no id; it must be id="{expected_id}"')
            if attributes["id"].strip() != expected_id:
                self._refuse(
                    f'<seg id="{attributes["id"][:20]}"> where id="{expected_id}" must be: a segment is missing, '
                    "doubled or out of order; correct the document"
                )
        if depth > 3:
            self._refuse(f"stray <{name}> inside <{self._path[-1]}>; remove it")
        self._path.append(name)
        self._text.clear()

    def _end(self, name: str) -> None:
        self._path.pop()
        depth = len(self._path)
        if depth == 3 and name == "seg":
            self.documents[-1].sentences.append(" ".join("".join(self._text).split()))
        elif depth < 3:
            self._refuse_text(f"</{name}>")
        if name == "doc" and not self.documents[-1].sentences:
            self._refuse(f"document {self.documents[-1].name} has no <seg>; give the official file")
        self._text.clear()

    def _refuse_text(self, tag: str) -> None:
        if stray := "".join(self._text).strip():
            self._refuse(f"text outside of any tag before {tag} ('{stray[:20]}'); correct it")

    def _characters(self, text: str) -> None:
        self._text.append(text)
