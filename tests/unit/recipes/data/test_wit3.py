"""Corpora in WIT3's formats: counts, documents, every kind of archive, and what is refused."""

import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recipes.cli.prepare import parser, preparation
from recipes.config.corpora import load_corpus
from recipes.config.schema import RECIPES
from recipes.data import sources
from recipes.data.splits import clean
from recipes.data.wit3 import train_documents, xml_documents
from thoth_core.errors import UserError

CORPUS = """\
description: talks
source: de
target: en
reader: wit3
wit3: {pair: de-en, test: [TED.dev2010 + TEDX.dev2012, TED.tst2010]}
valid: {every: 23}
subwords: {vocab_size: 60}
clean: {language_check: false, duplicates: keep, max_ratio: null}
"""
TALKS, SENTENCES = 4, 30


def sentence(language: str, talk: int, number: int) -> str:
    return {"de": f"Satz {number} aus Vortrag {talk}.", "en": f"Sentence {number} of talk {talk}."}[language]


def train(language: str) -> str:
    """A train.tags file: 4 talks of 2 + 30 sentences, of which one is empty."""
    lines = []
    for talk in range(1, TALKS + 1):
        lines += [f"<url>http://www.ted.com/talks/{talk}</url>", "<keywords>talks, TED</keywords>",
                  f"<speaker>Speaker {talk}</speaker>", f"<talkid>{talk}0</talkid>",
                  f"<title>{sentence(language, talk, 100)}</title>",
                  f"<description> {sentence(language, talk, 200)} </description>"]  # fmt: skip
        lines += [sentence(language, talk, number) for number in range(1, SENTENCES + 1)]
    if language == "de":
        lines[10] = ""  # the fifth sentence of the first talk
    return "".join(line + "\n" for line in lines)


def xml(language: str, first: int, talks: int = 2, sentences: int = 5) -> str:
    """A set: `talks` talks, the first of which has the number `first`."""
    kind = "srcset" if language == "de" else "refset"
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<mteval>", f'<{kind} setid="tst" srclang="german">']
    for talk in range(first, first + talks):
        lines += [f'<doc docid="{talk}" genre="lectures">', f"<talkid>{talk}</talkid>", "<title>A &amp; B</title>"]
        lines += [f'<seg id="{n}"> {sentence(language, talk, n)} </seg>' for n in range(1, sentences + 1)] + ["</doc>"]
    return "\n".join([*lines, f"</{kind}>", "</mteval>"]) + "\n"


def official() -> dict[str, str]:
    """The files of an archive, by their names in it."""
    files = {}
    for language in ("de", "en"):
        files[f"de-en/train.tags.de-en.{language}"] = train(language)
        for name, first in (("TED.dev2010", 50), ("TEDX.dev2012", 60), ("TED.tst2010", 70)):
            files[f"de-en/{name}.de-en.{language}.xml"] = xml(language, first)
    return files


def packed(files: dict[str, str] | dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, text in files.items():
            content = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def unpacked(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a corpus file and its archive."""
    (tmp_path / "mine.yaml").write_text(CORPUS)
    (tmp_path / "de-en.tgz").write_bytes(packed(official()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def read(*arguments: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What prepare.sh with these arguments reads."""
    request = preparation(parser().parse_args([*arguments])).request
    return sources.read(sources.locate(request), request)


def prepare(arguments: list[str]) -> None:
    preparation(parser().parse_args(arguments)).run()


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


# --- what it reads ------------------------------------------------------------------------------------------


def test_splits_documents_and_test_sets(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, tests = read("mine.yaml", "--from", "de-en.tgz")
    assert tests == {"test": "TED.dev2010 + TEDX.dev2012", "test1": "TED.tst2010"}
    assert list(raw) == ["train", "test", "test1"]
    assert raw["train"].source[:4] == [sentence("de", 1, n) for n in (100, 200, 1, 2)]
    assert raw["train"].target[32:35] == [sentence("en", 2, n) for n in (100, 200, 1)]
    assert raw["train"].documents == [f"{talk}0" for talk in range(1, 5) for _ in range(32)]
    assert raw["test"].documents == [str(talk) for talk in (50, 51, 60, 61) for _ in range(5)]
    assert raw["test1"].target == [sentence("en", talk, n) for talk in (70, 71) for n in range(1, 6)]
    assert capsys.readouterr().out.splitlines() == [
        "train.tags.de-en: 4 documents, 128 sentence pairs",
        "TED.dev2010.de-en: 2 documents, 10 sentence pairs",
        "TEDX.dev2012.de-en: 2 documents, 10 sentence pairs",
        "TED.tst2010.de-en: 2 documents, 10 sentence pairs",
    ]


def zip_of(files: dict[str, str]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return written.getvalue()


def renamed(files: dict[str, str]) -> dict[str, str]:
    return {name.replace("de-en", "en-de"): text for name, text in files.items()}


FORMS: dict[str, Callable[[Path], object]] = {
    "a zip": lambda form: form.write_bytes(zip_of(official())),
    "a folder": lambda form: unpacked(form, official()),
    "a folder with the archive": lambda form: [form.mkdir(), (form / "de-en.tgz").write_bytes(packed(official()))],
    "a release": lambda form: form.write_bytes(packed({"texts/de/en/de-en.tgz": packed(official())})),
    "of the other direction": lambda form: form.write_bytes(packed(renamed(official()))),
    "both directions": lambda form: unpacked(form, official() | {"en-de/train.tags.en-de.de": "<talkid>"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same(work: Path, name: str) -> None:
    FORMS[name](work / "form")
    expected, _ = read("mine.yaml", "--from", "de-en.tgz")
    raw, _ = read("mine.yaml", "--from", "form")
    for split in expected:
        assert raw[split].source == expected[split].source
        assert raw[split].target == expected[split].target
        assert raw[split].documents == expected[split].documents


def test_the_other_direction(work: Path) -> None:
    (work / "back.yaml").write_text(f"like: {work / 'mine.yaml'}\nsource: en\ntarget: de\n")
    there, _ = read("mine.yaml", "--from", "de-en.tgz")
    back, _ = read("back.yaml", "--from", "de-en.tgz")
    for split in there:
        assert (back[split].source, back[split].target) == (there[split].target, there[split].source)
        assert back[split].documents == there[split].documents


def test_a_copy_of_a_hub_data_set(work: Path) -> None:
    """Parquet as the hub exports it, below the folder that the corpus file names; it knows no talks."""
    import pyarrow
    import pyarrow.parquet

    (work / "mine.yaml").write_text(CORPUS + "hub: {folder: iwslt-de-en}\n")
    for split in ("train", "test"):  # no validation: it comes from the training text
        rows = [{"translation": {"de": sentence("de", 1, n), "en": sentence("en", 1, n)}} for n in range(50)]
        (work / "copy/iwslt-de-en" / split).mkdir(parents=True)
        (work / "copy/iwslt-fr-en" / split).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), work / f"copy/iwslt-de-en/{split}/0000.parquet")
        (work / f"copy/iwslt-fr-en/{split}/0000.parquet").write_bytes(b"another pair's, not to be read")
    raw, tests = read("mine.yaml", "--reader", "hub", "--from", "copy")
    assert tests == {"test": "test"}
    assert raw["train"].target == [sentence("en", 1, n) for n in range(50)]
    assert raw["train"].documents is None


def test_texts_are_what_they_say() -> None:
    talks = train_documents(
        b'<doc docid="1" genre="lectures">\r\n<url>u</url>\n<talkid> 7 </talkid>\n<title>T <i>t</i></title>\n'
        b'<reviewer href="http://x">R</reviewer>\n<translator></translator>\n<transcript>\n'
        b"  A & B &amp; C < D \n<em>E</em> f\nG <b>g</b>\n\n</transcript>\n</doc>\n",
        "f",
    )
    assert [(talk.name, talk.sentences) for talk in talks] == [
        ("7", ["T <i>t</i>", "A & B &amp; C < D", "<em>E</em> f", "G <b>g</b>", ""])
    ]
    content = xml("de", 3).replace("Satz 1 aus", "A &amp; B &lt;em&gt; \n &#228;")
    talks = xml_documents(content.encode(), "f")
    assert talks[0].sentences[:2] == ["A & B <em> ä Vortrag 3.", "Satz 2 aus Vortrag 3."]
    assert [(talk.name, talk.line, len(talk.sentences)) for talk in talks] == [("3", 4, 5), ("4", 14, 5)]


# --- a corpus of it -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_download_to_the_corpus_and_back_to_the_archive(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fetched and built; then nothing to do, without a server, from a copy of the archive, and from where it came."""
    (work / "served").mkdir()
    (work / "de-en.tgz").rename(work / "served" / "de-en.tgz")
    digest = hashlib.sha256((work / "served" / "de-en.tgz").read_bytes()).hexdigest()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(work / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/de-en.tgz"
        (work / "mine.yaml").write_text(CORPUS.replace("{pair", f"{{url: '{url}', pair"))
        prepare(["mine.yaml", "--sha256", digest])
        server.shutdown()
        thread.join()
    assert "valid: one of every 23 pairs of the cleaned training text, 5" in capsys.readouterr().out
    corpus = work / "data" / "mine"
    description = json.loads((corpus / "corpus.json").read_text())
    assert description["splits"] == {
        "train": {"read": 128, "kept": 122, "dropped": {"empty": 1}, "taken for valid": 5},
        "valid": {"read": 5, "kept": 5, "dropped": {}},
        "test": {"read": 20, "kept": 20, "dropped": {}},
        "test1": {"read": 10, "kept": 10, "dropped": {}},
    }
    everything = [sentence("en", talk, n) for talk in range(1, 5) for n in (100, 200, *range(1, 31))]
    everything.remove(sentence("en", 1, 5))  # whose German side is the empty line
    assert lines(corpus / "text/valid.en") == everything[22::23]
    assert lines(corpus / "text/train.en") == [line for line in everything if line not in everything[22::23]]
    for split in description["splits"]:
        for document, line in zip(
            lines(corpus / f"text/{split}.docs"), lines(corpus / f"text/{split}.en"), strict=True
        ):
            assert line.endswith(f"talk {document.removesuffix('0') if split in ('train', 'valid') else document}.")
    assert f"text/{split}.docs" in description["files"]

    before = tree(work / "data")
    for arguments in (["--sha256", digest], ["--from", "served/de-en.tgz"]):
        prepare(["mine.yaml", *arguments])
        assert capsys.readouterr().out == f"{corpus} is up to date\n"
    assert tree(work / "data") == before
    assert [path.name for path in (work / "data/.downloads").iterdir()] == [f"{digest[:12]}-de-en.tgz"]


@pytest.mark.parametrize("every", [2, 3, 7])
def test_validation_from_the_training_text_of_any_reader(work: Path, every: int) -> None:
    """awk's NR % every == 0 over what cleaning leaves; text without documents gets none."""
    for split, count in (("train", 40), ("test", 5)):
        for language in ("de", "en"):
            text = [sentence(language, 1, number) if number % 10 else "" for number in range(count)]
            (work / f"{split}.{language}").write_text("\n".join(text[1:]) + "\n")
    (work / "plain.yaml").write_text(
        "description: plain\nsource: de\ntarget: en\nreader: files\nfiles: {train: train, test: test}\n"
        f"valid: {{every: {every}}}\nsubwords: {{vocab_size: 60}}\n"
    )
    raw, _ = read("plain.yaml")
    splits = clean(raw, preparation(parser().parse_args(["plain.yaml"])).request.settings)
    kept = [(sentence("de", 1, number), sentence("en", 1, number)) for number in range(1, 40) if number % 10]
    assert splits.text["valid"] == [pair for number, pair in enumerate(kept, 1) if number % every == 0]
    assert splits.text["train"] == [pair for number, pair in enumerate(kept, 1) if number % every]
    assert list(splits.text) == list(splits.counts) == ["train", "valid", "test"]
    assert splits.documents == {}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("corpora/iwslt*.yaml")))
def test_shipped_corpora(name: str, tmp_path: Path) -> None:
    """Both directions of a pair read the same files, which a release has, and only a pinned archive is downloaded."""
    path, corpus = load_corpus(name)
    campaign, pair, *preparation = name.split(".")
    source, target = pair.split("-")
    assert corpus.languages == (source, target)
    _, back = load_corpus(".".join([campaign, f"{target}-{source}", *preparation]))
    for key in ("wit3", "hub", "valid", "subwords", "clean"):
        assert getattr(back, key) == getattr(corpus, key)
    years = {"iwslt14": "IWSLT14", "iwslt15": "IWSLT15", "iwslt17": "IWSLT17"}[campaign]
    sets = [part for text in (corpus.wit3.valid, *corpus.wit3.test) if text for part in text.split(" + ")]
    assert all(part.startswith(f"{years}.TED") for part in sets)
    request = sources.CorpusRequest(path, corpus, tmp_path / "data")
    if corpus.wit3.sha256:
        located = sources.locate(request)
        assert located.url is not None
        assert located.url.endswith(f"/{corpus.wit3.pair}.tgz")
        assert located.identities == [f"archive {corpus.wit3.sha256}"]
    else:
        with pytest.raises(UserError, match=r"no SHA-256 is known to check a download with|has no 'wit3.url'"):
            sources.locate(request)
    assert list(tmp_path.iterdir()) == []


# --- what it refuses ----------------------------------------------------------------------------------------

TRAIN_DE, TRAIN_EN = "de-en/train.tags.de-en.de", "de-en/train.tags.de-en.en"
DEV_DE, DEV_EN = "de-en/TED.dev2010.de-en.de.xml", "de-en/TED.dev2010.de-en.en.xml"
BOMB = (
    '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>\n<mteval>'
)

# name: (file, text in it, what stands there instead (None: the file is missing), what the line must hold)
BROKEN: dict[str, tuple[str, str, str | None, list[str]]] = {
    "no training text": (TRAIN_DE, "", None, ["de-en.tgz: contains no train.tags.de-en.de", "complete archive"]),
    "no set": (DEV_EN, "", None, ["de-en.tgz: contains no TED.dev2010.de-en.en.xml", "complete archive"]),
    "unknown tag": (TRAIN_DE, "Satz 2 aus", "<date>2", [f"/{TRAIN_DE}, line 8: stray <date>", "correct that line"]),
    "unclosed tag": (TRAIN_DE, "Vortrag 1.</title>", "", [f"/{TRAIN_DE}, line 5: stray <title>", "correct that line"]),
    "tag in a sentence": (TRAIN_EN, "Sentence 1 of talk 1.", "x <url>y</url>",
                          [f"/{TRAIN_EN}, line 7: stray <url>", "a line of its own"]),
    "closing tag": (TRAIN_EN, "Sentence 1 of talk 1.", "</description>",
                    [f"/{TRAIN_EN}, line 7: stray </description>"]),
    "segment in the training text": (TRAIN_EN, "Sentence 1 of talk 1.", '<seg id="1">x</seg>',
                                     [f'/{TRAIN_EN}, line 7: stray <seg id="1">']),
    "no talk's id": (TRAIN_DE, "<talkid>20</talkid>\n", "",
                     [f"/{TRAIN_DE}, line 37: a document without <talkid>", "add"]),
    "odd talk's id": (TRAIN_DE, "<talkid>20<", "<talkid>2 0<",
                      [f"/{TRAIN_DE}, line 40: a document's id must be", "'2 0'"]),
    "empty talk": (TRAIN_DE, "<talkid>20<", "<talkid>9</talkid>\n<title>t</title>\n<talkid>20<",
                   [f"/{TRAIN_DE}, line 42: a second document begins, but document 9 has no sentence",
                    "remove its header"]),
    "empty last talk": (TRAIN_DE, sentence("de", 4, 30) + "\n", "<talkid>9</talkid>\n",
                        [f"/{TRAIN_DE}, line 144: document 9 has no sentence", "cut off?"]),
    "text before the first talk": (TRAIN_DE, "<url>http://www.ted.com/talks/1<", "Hallo.\n<url>x<",
                                   [f"/{TRAIN_DE}, line 1: a sentence before the first document"]),
    "another talk": (TRAIN_EN, "<talkid>20<", "<talkid>21<",
                     [f"/{TRAIN_DE}, line 37: is document 20, but", f"/{TRAIN_EN}, line 37, is document 21",
                      "same order"]),
    "a sentence too few": (TRAIN_EN, "Sentence 7 of talk 3.\n", "",
                           [f"/{TRAIN_DE}, line 73: document 30 has 32 sentences, but 31 in", f"/{TRAIN_EN}, line 73",
                            "correct that document"]),
    "a talk too few": (TRAIN_DE, train("de")[train("de").index("<url>http://www.ted.com/talks/4"):], "",
                       [f"/{TRAIN_EN}, line 109: document 40 has no counterpart in", f"/{TRAIN_DE}, which has 3",
                        "same documents"]),
    "empty training text": (TRAIN_DE, train("de"), "", [f"/{TRAIN_DE}: is empty", "official file"]),
    "training text in UTF-16": (TRAIN_DE, "<url>", "\0", [f"/{TRAIN_DE}, line 1: contains a NUL byte", "UTF-8"]),
    "no XML": (DEV_DE, xml("de", 50), "Just text.\n", [f"/{DEV_DE}, line 1: is not well-formed XML", "correct it"]),
    "XML cut off": (DEV_DE, "</srcset>\n</mteval>\n", "", [f"/{DEV_DE}, line 22: is not well-formed XML"]),
    "wrong nesting": (DEV_DE, "</title>", "</titel>", [f"/{DEV_DE}, line 6: is not well-formed XML (mismatched tag)"]),
    "bare ampersand": (DEV_EN, "Sentence 1 of talk 50.", "A & B", [f"/{DEV_EN}, line 7: is not well-formed XML"]),
    "no segment's id": (DEV_EN, '<seg id="2">', "<seg>", [f'/{DEV_EN}, line 8: <seg> has no id; it must be id="2"']),
    "missing segment": (DEV_EN, f'<seg id="2"> {sentence("en", 50, 2)} </seg>\n', "",
                        [f'/{DEV_EN}, line 8: <seg id="3"> where id="2" must be', "correct the document"]),
    "doubled segment": (DEV_EN, '<seg id="2">', '<seg id="1">', [f'/{DEV_EN}, line 8: <seg id="1"> where id="2"']),
    "last segment missing": (DEV_EN, f'<seg id="5"> {sentence("en", 51, 5)} </seg>\n', "",
                             [f"/{DEV_DE}, line 13: document 51 has 5 sentences, but 4 in", f"/{DEV_EN}, line 13"]),
    "talk without segments": (DEV_DE, xml("de", 50)[xml("de", 50).index("<seg"):xml("de", 50).index("</doc>")], "",
                              [f"/{DEV_DE}, line 7: document 50 has no <seg>"]),
    "no talk": (DEV_DE, xml("de", 50)[xml("de", 50).index("<doc"):xml("de", 50).index("</srcset>")], "",
                [f"/{DEV_DE}: contains no <doc>"]),
    "no docid": (DEV_DE, 'docid="50"', "", [f"/{DEV_DE}, line 4: <doc> has no docid", "add"]),
    "another document": (DEV_EN, 'docid="51"', 'docid="52"', [f"/{DEV_DE}, line 13: is document 51, but"]),
    "stray text": (DEV_EN, '<seg id="3">', 'Oh! <seg id="3">', [f"/{DEV_EN}, line 9: text outside of any tag", "Oh"]),
    "stray tag": (DEV_EN, "Sentence 3 of talk 50.", "<b>x</b>", [f"/{DEV_EN}, line 9: stray <b> inside <seg>"]),
    "no set inside": (DEV_EN, "refset", "reference", [f"/{DEV_EN}, line 3: <reference> where <srcset> or <refset>"]),
    "two sets": (DEV_EN, "</refset>\n", "</refset>\n<refset>\n", [f"/{DEV_EN}, line 23: a second set begins"]),
    "other XML": (DEV_EN, "mteval", "html", [f"/{DEV_EN}, line 2: <html> where <mteval> must be"]),
    "empty segment": (DEV_EN, "Sentence 3 of talk 50.", "", [DEV_EN, "sentence 3: is empty", "correct it in both"]),
    "entities that swell": (DEV_DE, "<mteval>", BOMB, [f"/{DEV_DE}, line 2: declares a document type or entities"]),
    "a file from outside": (DEV_DE, "<mteval>", '<!DOCTYPE m SYSTEM "file:///etc/passwd">\n<mteval>',
                            [f"/{DEV_DE}, line 2: declares a document type"]),
    "unknown entity": (DEV_DE, "Satz 1 aus", "&uuml;", [f"/{DEV_DE}, line 7: is not well-formed XML"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(work: Path, name: str) -> None:
    file, old, new, parts = BROKEN[name]
    files = official()
    if new is None:
        del files[file]
    else:
        assert old in files[file]
        files[file] = files[file].replace(old, new, -1 if old in ("refset", "mteval") else 1)
    (work / "de-en.tgz").write_bytes(packed(files))
    refused(work, ["mine.yaml", "--from", "de-en.tgz"], parts)


def refused(work: Path, arguments: list[str], parts: list[str]) -> None:
    """Whether the call ends with one line that holds every one of `parts`, and has changed nothing."""
    before = tree(work)
    with pytest.raises(UserError) as caught:
        prepare(arguments)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tree(work) == before


def yaml(old: str, new: str) -> Callable[[Path], object]:
    assert old in CORPUS
    return lambda work: (work / "mine.yaml").write_text(CORPUS.replace(old, new))


def nothing(_: Path) -> None:
    pass


def hostile(member: tarfile.TarInfo) -> Callable[[Path], object]:
    def spoil(work: Path) -> None:
        with tarfile.open(work / "de-en.tgz", "w:gz") as archive:
            archive.addfile(member)

    return spoil


def symbolic_link() -> tarfile.TarInfo:
    member = tarfile.TarInfo(TRAIN_DE)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


FROM = ["mine.yaml", "--from", "de-en.tgz"]
SUM = "0" * 64
WRONG: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "no archive": (nothing, ["mine.yaml", "--from", "fr-en.tgz"], ["--from fr-en.tgz: no such folder"]),
    "no archive: text": (lambda w: (w / "de-en.tgz").write_text("x"), FROM, ["de-en.tgz: is something else, not a"]),
    "cut off": (lambda w: (w / "de-en.tgz").write_bytes(packed(official())[:-9]), FROM,
                ["de-en.tgz: is cut off or damaged", "copy or download it again"]),
    "path that leads outside": (hostile(tarfile.TarInfo("../../.bashrc")), FROM,
                                ["de-en.tgz: member '../../.bashrc' would not stay inside", "official"]),
    "link": (hostile(symbolic_link()), FROM, ["de-en.tgz: member de-en/train.tags.de-en.de is a link or device"]),
    "another pair": (lambda w: (w / "de-en.tgz").write_bytes(packed({"fr-en/train.tags.fr-en.fr": "x"})), FROM,
                     ["de-en.tgz: contains no train.tags.de-en.de, but fr-en/train.tags.fr-en.fr", "--reader hub"]),
    "archive of nothing": (lambda w: (w / "de-en.tgz").write_bytes(packed({})), FROM,
                           ["de-en.tgz: contains no train.tags.de-en.de, but nothing"]),
    "release without the pair": (
        lambda w: (w / "de-en.tgz").write_bytes(packed({"texts/fr/en/fr-en.tgz": packed(official())})), FROM,
        ["contains no train.tags.de-en.de, but texts/fr/en/fr-en.tgz"]),
    "archive inside damaged": (lambda w: (w / "de-en.tgz").write_bytes(packed({"de-en.tgz": packed(official())[:-9]})),
                               FROM, ["de-en.tgz/de-en.tgz: is cut off or damaged"]),
    "twice": (lambda w: (w / "de-en.tgz").write_bytes(packed(official() | {"old/train.tags.de-en.de": "x"})), FROM,
              ["contains train.tags.de-en.de twice", "old/train.tags.de-en.de", "remove one"]),
    "folder of something else": (lambda w: unpacked(w / "x", {"train.de": "x"}), ["mine.yaml", "--from", "x"],
                                 ["--from x: contains no train.tags.de-en.* and no de-en.tgz", "x contains train.de"]),
    "sum of the archive": (nothing, [*FROM, "--sha256", SUM], ["de-en.tgz: has the SHA-256 ", f"--sha256 says {SUM}"]),
    "sum of a folder": (lambda w: unpacked(w / "x", official()), ["mine.yaml", "--from", "x", "--sha256", SUM],
                        ["--sha256: x is a folder", "give an archive"]),
    "no sum": (nothing, [*FROM, "--sha256", "abc"], ["--sha256 must be 64 hexadecimal digits, but is abc"]),
    "sum for another reader": (nothing, ["quickstart", "--sha256", SUM], ["--sha256: is for corpora of the reader"]),
    "unpinned download": (yaml("{pair", "{url: 'https://localhost/de-en.tgz', pair"), ["mine.yaml"],
                          ["https://localhost/de-en.tgz: no SHA-256 is known", "--from ARCHIVE", "--sha256 SUM"]),
    "nothing to download": (nothing, ["mine.yaml"], ["mine.yaml: has no 'wit3.url'", "--from"]),
    "no address": (yaml("{pair", "{url: 'ftp://x', pair"), FROM, ["'wit3.url' must be an https address, but is ftp:"]),
    "no server": (yaml("{pair", f"{{url: 'http://127.0.0.1:9/x.tgz', sha256: '{SUM}', pair"), ["mine.yaml"],
                  ["http://127.0.0.1:9/x.tgz: cannot be fetched (Connection refused)", "--from ARCHIVE"]),
    "another language": (nothing, [*FROM, "--source", "fr"], ["'wit3.pair' is de-en", "fr and en", "--source"]),
    "no pair": (yaml("pair: de-en, ", ""), FROM, ["'wit3.pair' is missing", "de and en", "correct it"]),
    "odd pair": (yaml("pair: de-en", "pair: german"), FROM, ["'wit3.pair' must be a pair as in de-en, but is german"]),
    "no test set": (yaml("[TED.dev2010 + TEDX.dev2012, TED.tst2010]", "[]"), FROM, ["'wit3.test' must name sets"]),
    "half a test set": (yaml("TEDX.dev2012,", ","), FROM, ["'wit3.test' must name sets"]),
    "no validation set": (yaml("valid: {every: 23}\n", ""), FROM, ["'wit3.valid' must name sets"]),
    "every pair to validation": (yaml("every: 23", "every: 1"), FROM, ["'valid.every' must be a whole number"]),
    "too few for validation": (yaml("every: 23", "every: 128"), FROM,
                               ["cleaning leaves 127 training pairs, too few for 'valid.every' 128", "give more text"]),
    "like nothing": (lambda w: (w / "mine.yaml").write_text("like: nowhere\n"), FROM, ["unknown corpus 'nowhere'"]),
    "like itself": (lambda w: (w / "mine.yaml").write_text("like: mine.yaml\n"), FROM,
                    ["mine.yaml: 'like' must name another corpus"]),
    "like a list": (yaml("description", "like: [a]\ndescription"), FROM, ["'like' must name another corpus", "[a]"]),
    "unknown reader": (nothing, [*FROM, "--reader", "xml"], ["--reader must be one of files, hub, quickstart, wit3"]),
    "hub without a name": (nothing, ["mine.yaml", "--reader", "hub"], ["'hub.name' is missing", "--from FOLDER"]),
    "archive for the hub": (nothing, [*FROM, "--reader", "hub"], ["--from de-en.tgz: is a file", "give the folder"]),
    "languages swapped": (
        lambda w: [(w / "mine.yaml").write_text(CORPUS.replace("language_check: false, ", "")),
                   (w / "de-en.tgz").write_bytes(packed(official() | {
                       TRAIN_DE: train("en"), TRAIN_EN: train("de"), DEV_DE: xml("en", 50), DEV_EN: xml("de", 50)}))],
        FROM, ["should be 'de' but looks like en", "--no-language-check"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(work: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.data.download.PAUSE", 0.0)
    spoil, arguments, parts = WRONG[name]
    spoil(work)
    refused(work, arguments, parts)
