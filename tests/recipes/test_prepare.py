"""recipes/prepare.sh from its command line: what it writes, that it can be interrupted, and what it refuses.

Some tests count on real text of two languages: two hundred made-up sentences are enough for it.
"""

import fcntl
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.paths import ROOT

SCRIPT = ROOT / "recipes" / "prepare.sh"

NOUNS = [
    ("Mann", "man"),
    ("Hund", "dog"),
    ("Vogel", "bird"),
    ("Baum", "tree"),
    ("Zug", "train"),
    ("Fisch", "fish"),
]
VERBS = [("sieht", "sees"), ("sucht", "seeks"), ("findet", "finds"), ("kennt", "knows"), ("malt", "paints")]
PLACES = [
    ("im Garten", "in the garden"),
    ("auf der Straße", "on the street"),
    ("über dem Fluss", "above the river"),
]


def sentences(seed: int, count: int) -> list[tuple[str, str]]:
    """Different German sentences with their translations."""
    draw = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        (a, x), (b, y) = draw.choice(NOUNS), draw.choice(NOUNS)
        (v, w), (p, q) = draw.choice(VERBS), draw.choice(PLACES)
        number = draw.randrange(100)
        pairs[f"Der {a} {number} {v} den {b} {p}."] = f"The {x} {number} {w} the {y} {q}."
    return list(pairs.items())


def write_pairs(prefix: Path, pairs: list[tuple[str, str]]) -> None:
    for side, language in enumerate(("de", "en")):
        Path(f"{prefix}.{language}").write_text("".join(pair[side] + "\n" for pair in pairs), encoding="utf-8")


def write_text(folder: Path) -> None:
    """folder/{train,dev,test}.{de,en}, 230 + 20 + 20 pairs, of which cleaning drops some."""
    folder.mkdir()
    pairs = sentences(1, 240)
    dirty = [
        ("", "Nothing."),
        ("Nichts.", " "),
        pairs[0],
        ("ein " * 60, "a " * 60),
        ("Ja.", "Yes, it is so, indeed."),
    ]
    write_pairs(folder / "train", [*pairs[:200], *dirty, *[("Das ist ein Test .",) * 2] * 2])
    write_pairs(folder / "dev", [*pairs[200:219], pairs[3]])
    write_pairs(folder / "test", [*pairs[220:240]])


FILES = ["files", "--source", "de", "--target", "en", "--train", "train", "--valid", "dev", "--test", "test"]
SETTINGS = ["--name", "toy", "--vocab-size", "120", "--max-length", "50"]
TEXT = [*FILES, *SETTINGS, "--from", "text"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}


def prepare(folder: Path, *arguments: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script with `folder` as working folder."""
    command = ["bash", "-c", f'{shell} exec "$@"', "bash", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below `folder`, and the folders themselves."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def prepared(shared_folder: Path) -> Path:
    """The folder `work` with text/ and what the script made of it in data/toy/. Do not write into it."""
    work = shared_folder / "prepared"
    with FileLock(shared_folder / "prepared.lock"):
        if not work.exists():
            building = shared_folder / "prepared.building"
            building.mkdir()
            write_text(building / "text")
            done = prepare(building, *TEXT)
            (building / "output").write_text(done.stdout + done.stderr, encoding="utf-8")
            assert done.returncode == 0, done.stderr
            building.rename(work)
    return work


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with text/, to be spoilt."""
    write_text(tmp_path / "text")
    return tmp_path


# --- what it writes -----------------------------------------------------------------------------------------


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_folder(prepared: Path) -> None:
    corpus = prepared / "data" / "toy"
    assert os.listdir(prepared / "data") == ["toy"], "neither temporary folder nor lock is left"
    description = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    assert description["name"] == "toy"
    assert (description["source"], description["target"]) == ("de", "en")
    assert description["subwords"] == {
        "kind": "sentencepiece",
        "model": "bpe",
        "joint": True,
        "vocab_size": 120,
        "models": {"de": "sentencepiece.model", "en": "sentencepiece.model"},
    }
    assert description["splits"] == {
        "train": {
            "read": 207,
            "kept": 200,
            "dropped": {"empty": 2, "too long": 1, "length ratio": 1, "identical sides": 2, "duplicate": 1},
        },
        "valid": {"read": 20, "kept": 20, "dropped": {}},
        "test": {"read": 20, "kept": 20, "dropped": {}},
    }
    assert description["tests"] == {"test": "test"}
    assert description["leaks"] == {"valid": 1}
    assert set(description["versions"]) == {"sentencepiece", "ve-fairseq"}
    files = {name: digest for name, digest in tree(corpus).items() if digest != "folder"}
    assert {*files} - {*description["files"]} == {"corpus.json", "preprocess.log"}
    assert description["files"].items() <= files.items()
    for language in ("de", "en"):
        assert read(corpus / "text" / f"test.{language}") == read(prepared / "text" / f"test.{language}")
        assert len(read(corpus / "text" / f"train.{language}")) == 200
    output = (prepared / "output").read_text(encoding="utf-8")
    assert "warning: valid: 1 of 20 source sentences occur in the training text" in output


def test_pieces_give_back_the_text_and_the_binary_files_hold_them(prepared: Path) -> None:
    import sentencepiece
    from fairseq.data import Dictionary
    from fairseq.data.data_utils import load_indexed_dataset

    corpus = prepared / "data" / "toy"
    model = sentencepiece.SentencePieceProcessor(model_file=str(corpus / "sentencepiece.model"))
    assert model.get_piece_size() == 120 == len(read(corpus / "sentencepiece.vocab"))
    dictionaries = {
        language: Dictionary.load(str(corpus / "bin" / f"dict.{language}.txt")) for language in ("de", "en")
    }
    assert dictionaries["de"] == dictionaries["en"]
    for split, unknown in (("train", 0), ("valid", 0), ("test", 0)):
        for language, dictionary in dictionaries.items():
            text = read(corpus / "text" / f"{split}.{language}")
            pieces = read(corpus / "pieces" / f"{split}.{language}")
            assert model.encode(text, out_type=str) == [line.split(" ") for line in pieces]
            assert model.decode([line.split(" ") for line in pieces]) == text
            binary = load_indexed_dataset(str(corpus / "bin" / f"{split}.de-en.{language}"), dictionary)
            assert [dictionary.string(line) for line in binary] == pieces
            assert sum(int((line == dictionary.unk()).sum()) for line in binary) == unknown


def test_model_normalises_raw_text_as_the_recipe_does(prepared: Path) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(prepared / "data" / "toy" / "sentencepiece.model"))
    raw = "\ufeffDer\u00a0 Mann\u00ad \u2009sucht\tden\x07 Baum.\r"
    assert model.encode(raw) == model.encode("Der Mann sucht den Baum.")


def test_second_call_is_up_to_date_whatever_the_path(prepared: Path, tmp_path: Path) -> None:
    before = tree(prepared / "data")
    text = [str(prepared / "text" / name) for name in ("train", "dev", "test")]
    files = [
        "files",
        "--source",
        "de",
        "--target",
        "en",
        "--train",
        text[0],
        "--valid",
        text[1],
        "--test",
        text[2],
    ]
    done = prepare(tmp_path, *files, *SETTINGS, "--data", str(prepared / "data"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{prepared / 'data' / 'toy'} is up to date\n"
    assert tree(prepared / "data") == before


def test_other_formats_separate_subwords_and_two_test_sets(work: Path, prepared: Path) -> None:
    """TSV, packed JSON lines and packed text, in a corpus file of one's own; a unigram vocabulary."""
    pairs = list(zip(read(work / "text/train.de"), read(work / "text/train.en"), strict=True))
    (work / "train.tsv").write_text("".join(f"{de}\t{en}\n" for de, en in pairs), encoding="utf-8")
    dev = zip(read(work / "text/dev.de"), read(work / "text/dev.en"), strict=True)
    content = "".join(json.dumps({"translation": {"de": de, "en": en}}) + "\n" for de, en in dev)
    (work / "dev.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    for language in ("de", "en"):
        (work / f"test.{language}.gz").write_bytes(gzip.compress((work / f"text/test.{language}").read_bytes()))
    (work / "mine.yaml").write_text(
        "description: mine\nsource: de\ntarget: en\nreader: files\n"
        "files: {train: train.tsv, valid: dev.jsonl.gz, test: [test, text/dev]}\n"
        "subwords: {vocab_size: 50, joint: false, model: unigram}\n"
        "clean: {max_length: 50}\n"
    )
    done = prepare(work, "mine.yaml", "--data", "data")
    assert done.returncode == 0, done.stderr
    corpus, joint = work / "data" / "mine", prepared / "data" / "toy"
    description = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    assert description["tests"] == {"test": "test", "test1": "dev"}
    assert description["subwords"]["models"] == {
        "de": "sentencepiece.de.model",
        "en": "sentencepiece.en.model",
    }
    for split, reference in (("train", "train"), ("valid", "valid"), ("test", "test"), ("test1", "valid")):
        for language in ("de", "en"):
            assert read(corpus / f"text/{split}.{language}") == read(joint / f"text/{reference}.{language}")
            assert (corpus / f"bin/{split}.de-en.{language}.bin").stat().st_size > 0
    assert read(corpus / "bin/dict.de.txt") != read(corpus / "bin/dict.en.txt")


PAPER = """\
description: as in papers
source: de
target: en
reader: files
preparation: paper
files: {train: text/train, valid: text/dev, test: text/test}
subwords: {operations: 70}
clean: {max_length: 59}
"""


def test_paper(work: Path) -> None:
    """Text stays as it was read; its tokens are cleaned, lower-cased and cut into joint pieces."""
    from fairseq.data import Dictionary
    from fairseq.data.data_utils import load_indexed_dataset

    from recipes.tokenization import bpe, moses

    text = work / "text"
    for language, last in (("de", "Ärger  mit »ihr« & dir.\n"), ("en", "Trouble  with 'her' & you.\n")):
        (text / f"test.{language}").write_text((text / f"test.{language}").read_text() + last, encoding="utf-8")
    (work / "paper.yaml").write_text(PAPER)
    done = prepare(work, "paper.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert "warning: valid: 1 of 20 source sentences" in done.stderr
    corpus = work / "data" / "paper"
    description = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    # Two empty pairs, one of 60 tokens a side, one of 2 and 8 tokens; duplicates and equal sides stay.
    dropped = {"empty": 2, "too long": 1, "length ratio": 1}
    assert description["splits"]["train"] == {"read": 207, "kept": 203, "dropped": dropped}
    assert description["subwords"] == {
        "kind": "subword-nmt",
        "operations": 70,
        "joint": True,
        "lowercase": True,
        "vocabulary_threshold": None,
        "models": {"de": "bpe.codes", "en": "bpe.codes"},
        "vocabularies": {},
    }
    assert set(description["versions"]) == {"regex", "sacremoses", "subword-nmt", "ve-fairseq"}
    assert read(corpus / "tokens/test.de")[-1] == "ärger mit » ihr « &amp; dir ."
    assert read(corpus / "tokens/test.en")[-1] == "trouble with &apos; her &apos; &amp; you ."
    trained = [line for language in ("de", "en") for line in read(corpus / f"tokens/train.{language}")]
    codes = (corpus / "bpe.codes").read_text(encoding="utf-8")
    assert codes == bpe.learn(trained, 70)
    merges = bpe.Merges(codes)
    assert read(corpus / "bin/dict.de.txt") == read(corpus / "bin/dict.en.txt")
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        for language in ("de", "en"):
            plain = read(corpus / f"text/{split}.{language}")
            assert split == "train" or plain == read(text / f"{name}.{language}")
            tokens, pieces = (read(corpus / f"{folder}/{split}.{language}") for folder in ("tokens", "pieces"))
            assert tokens == [moses.lowercase(moses.tokenise(line, language)) for line in plain]
            assert pieces == [*map(merges, tokens)]
            dictionary = Dictionary.load(str(corpus / f"bin/dict.{language}.txt"))
            binary = load_indexed_dataset(str(corpus / f"bin/{split}.de-en.{language}"), dictionary)
            assert [dictionary.string(line) for line in binary] == pieces or split != "train"
    assert prepare(work, "paper.yaml").stdout == f"{corpus.absolute()} is up to date\n"
    again = prepare(work, "paper.yaml", "--name", "again")
    assert again.returncode == 0
    (corpus.with_name("again") / "corpus.json").write_bytes((corpus / "corpus.json").read_bytes())  # another name
    assert tree(corpus.with_name("again")) == tree(corpus)


def test_paper_with_sub_words_of_each_language_and_a_threshold(work: Path) -> None:
    """Case is kept, pairs seen before are dropped, and rare pieces are cut further."""
    more = "joint: false, lowercase: false, vocabulary_threshold: 15}"
    (work / "paper.yaml").write_text(
        PAPER.replace("70}", f"70, {more}").replace("max_length: 59", "max_length: 59, duplicates: drop")
    )
    done = prepare(work, "paper.yaml", "--operations", "60")
    assert done.returncode == 0, done.stderr
    corpus = work / "data" / "paper"
    description = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    assert description["splits"]["train"]["kept"] == 201
    assert description["subwords"]["operations"] == 60
    assert description["subwords"]["models"] == {"de": "bpe.de.codes", "en": "bpe.en.codes"}
    assert description["subwords"]["vocabularies"] == {"de": "bpe.de.vocab", "en": "bpe.en.vocab"}
    for language in ("de", "en"):
        counts = dict(line.split(" ") for line in read(corpus / f"bpe.{language}.vocab"))
        rare = {piece for piece, count in counts.items() if int(count) < 15 and len(piece.removesuffix("@@")) > 1}
        pieces = {piece for line in read(corpus / f"pieces/train.{language}") for piece in line.split(" ")}
        assert rare
        assert not rare & pieces
        assert any(piece[0].isupper() for piece in pieces)
    assert read(corpus / "bin/dict.de.txt") != read(corpus / "bin/dict.en.txt")


SHARED = {
    "joint": (TEXT, FILES, ""),
    "of each language": (
        ["mine.yaml", "--name", "toy"],
        ["mine.yaml", "--train", "half"],
        "description: mine\nsource: de\ntarget: en\nreader: files\n"
        "files: {train: text/train, valid: text/dev, test: text/test}\n"
        "subwords: {vocab_size: 50, joint: false, model: unigram}\n",
    ),
    "paper, with a threshold": (
        ["mine.yaml", "--name", "toy"],
        ["mine.yaml", "--train", "half"],
        PAPER.replace("70}", "70, joint: false, lowercase: false, vocabulary_threshold: 15}"),
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_sub_words_of_another_corpus(work: Path, name: str) -> None:
    """Text that a model goes on with is cut and numbered as the text that it was trained on."""
    from fairseq.data import Dictionary
    from fairseq.data.data_utils import load_indexed_dataset

    from recipes.storage.corpus_record import CorpusRecord
    from recipes.tokenization import subwords

    first, second, file = SHARED[name]
    (work / "mine.yaml").write_text(file)
    halves = [*zip(read(work / "text/train.de"), read(work / "text/train.en"), strict=True)][:90]
    strange = ("Ein Quiz: 7 × Ω!", "A quiz: 7 × Ω!")  # with letters that the first text does not have
    write_pairs(work / "half", [*halves, strange])
    done = prepare(work, *first)
    assert done.returncode == 0, done.stderr
    if not file:
        second = [*second, "--from", "text", "--train", "../half"]
    second = [*second, "--name", "more", "--subwords-of", "toy"]
    done = prepare(work, *second)
    assert done.returncode == 0, done.stderr
    assert "using the sub-word models of data/toy\n" in done.stdout
    old, new = work / "data/toy", work / "data/more"
    descriptions = [json.loads((folder / "corpus.json").read_text(encoding="utf-8")) for folder in (old, new)]
    assert descriptions[1]["subwords"] == descriptions[0]["subwords"] | {"of": "toy"}
    assert descriptions[1]["splits"]["train"]["read"] == 91
    assert not (new / "dict.de.txt").exists()
    for path in (path.relative_to(old) for path in old.rglob("*")):
        if path.name.startswith(("dict.", "sentencepiece.", "bpe.")):
            assert (new / path).read_bytes() == (old / path).read_bytes(), path
    record = CorpusRecord.read(old / "corpus.json", remedy="")
    for language in ("de", "en"):
        known = subwords.load_segmenter(record.subwords, old, language)
        pieces = read(new / f"pieces/train.{language}")
        assert pieces == [" ".join(known.segment(line)) for line in read(new / f"text/train.{language}")]
        dictionary = Dictionary.load(str(old / f"bin/dict.{language}.txt"))
        binary = load_indexed_dataset(str(new / f"bin/train.de-en.{language}"), dictionary)
        kept = [
            " ".join(piece if piece in dictionary.indices else "<unk>" for piece in line.split(" ")) for line in pieces
        ]
        assert [dictionary.string(line) for line in binary] == kept
        assert any("<unk>" in line for line in kept)
    assert prepare(work, *second).stdout == f"{new} is up to date\n"
    swapped = prepare(work, *second, "--source", "en", "--target", "fr")
    assert swapped.stderr.startswith("error: --subwords-of toy: has the languages de and en, but ")
    (work / "other.yaml").write_text(PAPER if "paper" not in name else SHARED["of each language"][2])
    other = prepare(work, "other.yaml", "--name", "more", "--subwords-of", "toy")
    assert "name a corpus with the same preparation" in other.stderr
    smaller = ["--operations", "60"] if "paper" in name else ["--vocab-size", "48"]
    assert prepare(work, *first, "--force", *smaller).returncode == 0
    assert "was prepared from other text or with other settings" in prepare(work, *second).stderr
    (old / "bin/dict.de.txt").write_text("damaged 1\n")
    assert "data/toy/bin/dict.de.txt: damaged or changed" in prepare(work, *second).stderr


def test_quickstart_leaks_nothing(tmp_path: Path) -> None:
    """The generated corpus goes all the way; a leak in it would be an error and not a warning."""
    (tmp_path / "small.yaml").write_text(
        "description: small\nsource: de\ntarget: en\nreader: quickstart\n"
        "quickstart: {train: 500, valid: 30, test: 40}\nsubwords: {vocab_size: 150}\n"
        "clean: {unit: characters, max_length: 400}\n"
    )
    done = prepare(tmp_path, "small.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    description = json.loads((tmp_path / "data/small/corpus.json").read_text(encoding="utf-8"))
    assert description["splits"]["test"] == {"read": 40, "kept": 40, "dropped": {}}
    assert description["leaks"] == {}
    train = set(read(tmp_path / "data/small/text/train.de"))
    assert train.isdisjoint(read(tmp_path / "data/small/text/test.de"))


# --- interruptions and company ------------------------------------------------------------------------------


def start(folder: Path) -> "subprocess.Popen[str]":
    command = [str(SCRIPT), *TEXT]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def await_line(process: "subprocess.Popen[str]", beginning: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"the script ended without '{beginning}'")


def kill(process: "subprocess.Popen[str]", *, children: bool, number: int = signal.SIGKILL) -> None:
    if children:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_killed_at_any_moment_the_next_calls_give_the_same_bytes(work: Path, prepared: Path) -> None:
    """Killed with and without its child; then two calls at once, of which one builds the corpus."""
    draw = random.Random(5)
    for _ in range(4):
        process = start(work)
        time.sleep(draw.uniform(0.05, 1.5))
        kill(process, children=True)
        assert not (work / "data" / "toy").exists()
    process = start(work)
    await_line(process, "binarising")
    kill(process, children=False)
    assert (work / "data" / ".toy.partial").is_dir()
    # fairseq-preprocess lives on in there: the next calls wait for it; one cleans up and builds the whole.
    processes = [start(work) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    final = (work / "data" / "toy").absolute()
    assert sorted(lines[-1] for lines in outputs) == sorted([f"wrote {final}", f"{final} is up to date"])
    assert tree(work / "data") == tree(prepared / "data")


def test_terminated_it_leaves_nothing(work: Path) -> None:
    process = start(work)
    await_line(process, "binarising")
    kill(process, children=False, number=signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (work / "data").exists()


def test_what_a_killed_rebuild_had_moved_away_is_brought_back(work: Path, prepared: Path) -> None:
    data = work / "data"
    subprocess.run(["cp", "-r", str(prepared / "data"), str(data)], check=True)
    (data / "toy").rename(data / ".toy.replaced")
    (data / ".toy.partial" / "bin").mkdir(parents=True)
    done = prepare(work, *TEXT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("is up to date\n")
    assert tree(data) == tree(prepared / "data")


def test_what_a_killed_rebuild_left_beside_a_complete_corpus_is_removed(work: Path, prepared: Path) -> None:
    """Unless another process works there."""
    data = work / "data"
    subprocess.run(["cp", "-r", str(prepared / "data"), str(data)], check=True)
    (data / ".toy.partial" / "bin").mkdir(parents=True)
    with (data / ".toy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = tree(data)
        done = prepare(work, *TEXT)
        assert done.stdout.endswith("is up to date\n"), done.stderr
        assert tree(data) == before
    done = prepare(work, *TEXT)
    assert done.stdout.endswith("is up to date\n"), done.stderr
    assert sorted(os.listdir(data)) == ["toy"]
    assert tree(data) == tree(prepared / "data")


@pytest.mark.parametrize("damage", ["bin/train.de-en.en.bin", "text/test.de", "sentencepiece.model"])
def test_a_damaged_corpus_is_not_up_to_date(work: Path, prepared: Path, damage: str) -> None:
    """It is built again, which fails here and leaves everything as it was."""
    subprocess.run(["cp", "-r", str(prepared / "data"), str(work / "data")], check=True)
    (work / "data" / "toy" / damage).write_bytes(b"")
    broken = break_preprocess(work)
    before = tree(work)
    refused(prepare(work, *TEXT, shell=broken), ["fairseq-preprocess failed"])
    assert tree(work) == before


def test_a_held_lock_is_waited_for(work: Path) -> None:
    (work / "data").mkdir()
    with (work / "data" / ".toy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(work)
        await_line(process, "waiting: another process prepares")
        assert process.poll() is None
        assert os.listdir(work / "data") == [".toy.lock"]
        kill(process, children=True)


# --- what it refuses ----------------------------------------------------------------------------------------

Spoil = Callable[[Path], object]


def nothing(_: Path) -> None:
    pass


def change(name: str, content: bytes) -> Spoil:
    return lambda work: (work / name).write_bytes(content)


def yaml(content: str) -> Spoil:
    return lambda work: (work / "mine.yaml").write_text(content)


def mapped(name: str, function: Callable[[bytes], bytes]) -> Spoil:
    return lambda work: (work / name).write_bytes(function((work / name).read_bytes()))


def cut_gzip(work: Path) -> None:
    content = gzip.compress((work / "text/train.de").read_bytes())
    (work / "text/train.de").unlink()
    (work / "text/train.de.gz").write_bytes(content[: len(content) // 2])


def fake_gzip(work: Path) -> None:
    (work / "text/train.de").rename(work / "text/train.de.gz")


def swap(work: Path) -> None:
    for split in ("train", "dev", "test"):
        (work / f"text/{split}.de").rename(work / "text/other")
        (work / f"text/{split}.en").rename(work / f"text/{split}.de")
        (work / "text/other").rename(work / f"text/{split}.en")


def link(work: Path) -> None:
    (work / "text/train.en").unlink()
    (work / "text/train.en").symlink_to("train.de")


def blank_first(content: bytes) -> bytes:
    return b" \t\n" + content.split(b"\n", 1)[1]


def one_letter(work: Path) -> None:
    for language, line in (("de", "a b c\n"), ("en", "d e f\n")):
        (work / f"text/train.{language}").write_text(line)


def foreign(work: Path) -> None:
    (work / "data/toy").mkdir(parents=True)
    (work / "data/toy/thesis.tex").write_text("years of work")


def with_notes(work: Path) -> None:
    other_corpus(work)
    (work / "data/toy/raw").mkdir()
    (work / "data/toy/raw/train.de").write_text("the only copy")


def linked(work: Path) -> None:
    other_corpus(work)
    (work / "data/toy").rename(work / "elsewhere")
    (work / "data/toy").symlink_to(work / "elsewhere")


def other_corpus(work: Path) -> None:
    (work / "data/toy").mkdir(parents=True)
    record = {
        "name": "toy", "source": "de", "target": "en", "fingerprint": "of something else",
        "splits": {}, "tests": {}, "leaks": {}, "versions": {}, "files": {},
        "subwords": {"kind": "sentencepiece", "model": "bpe", "joint": True, "vocab_size": 9,
                     "models": {"de": "x.model", "en": "x.model"}},
    }  # fmt: skip
    (work / "data/toy/corpus.json").write_text(json.dumps(record))


def data_set(work: Path) -> None:
    (work / "set").mkdir()
    (work / "set/train.jsonl").write_text('{"de": "Ja.", "en": "Yes."}\n')


CORPUS = "description: mine\nsource: de\ntarget: en\nreader: files\nsubwords: {vocab_size: 100}\n"

# name: (how the text is spoilt, arguments, what the line must hold: the file or option, and the remedy)
WRONG: dict[str, tuple[Spoil, list[str], list[str]]] = {
    "unknown corpus": (nothing, ["multi31k"], ["unknown corpus 'multi31k'", "multi30k.de-en"]),
    "missing corpus file": (nothing, ["mine.yaml"], ["mine.yaml: no such corpus file", "give"]),
    "broken corpus file": (yaml("a: [\n"), ["mine.yaml"], ["mine.yaml, line 2: is not valid YAML", "correct"]),
    "unknown key": (
        yaml(CORPUS + "claen: {}\n"),
        ["mine.yaml"],
        ["mine.yaml: unknown key 'claen'", "'clean'?"],
    ),
    "language read as false": (
        yaml(CORPUS.replace("en", "no")),
        ["mine.yaml"],
        ["'target'", "put it in quotes"],
    ),
    "no test text": (nothing, [*FILES[:-2], "--from", "text"], ["names no test text", "--test"]),
    "no languages": (
        nothing,
        ["files", "--train", "text/train"],
        ["files.yaml: names no source", "--source LANG"],
    ),
    "language name": (
        nothing,
        [*TEXT, "--source", "german"],
        ["--source must be a language code such as de"],
    ),
    "language with a dash": (
        nothing,
        [*TEXT, "--target", "en-US"],
        ["--target must be a language code such as de"],
    ),
    "one language": (
        nothing,
        [*TEXT, "--target", "de"],
        ["--source and --target: are both 'de'", "give two"],
    ),
    "absent language": (
        nothing,
        [*TEXT, "--source", "fr"],
        ["text/train.fr: no such file", "contains dev.de, dev.en"],
    ),
    "missing folder": (nothing, [*FILES, "--from", "txt"], ["--from txt: no such folder", "give the folder"]),
    "file for a folder": (
        nothing,
        [*FILES, "--from", "text/dev.de"],
        ["--from text/dev.de: is a file", "give"],
    ),
    "empty folder name": (nothing, [*FILES, "--from", ""], ["--from must name a folder", "--help"]),
    "missing file": (
        lambda w: (w / "text/dev.en").unlink(),
        TEXT,
        ["text/dev.en: no such file", "text contains dev.de"],
    ),
    "missing table": (
        nothing,
        [*TEXT, "--train", "a.tsv"],
        ["text/a.tsv: no such file", "text contains dev.de"],
    ),
    "plain and packed": (
        change("text/dev.en.gz", b""),
        TEXT,
        ["text/dev.en: dev.en.gz is there", "remove one"],
    ),
    "folder for a file": (
        lambda w: (w / "text/a.de").mkdir(),
        [*TEXT, "--test", "a"],
        ["text/a.en: no such file"],
    ),
    "empty file": (change("text/train.de", b""), TEXT, ["text/train.de: is empty", "give a file"]),
    "misaligned": (
        mapped("text/train.en", lambda b: b.split(b"\n", 1)[1]),
        TEXT,
        ["text/train.de has 207 lines but text/train.en has 206", "give files whose lines are translations"],
    ),
    "latin-1": (
        mapped("text/train.de", lambda b: b.decode().encode("latin-1")),
        TEXT,
        ["text/train.de, line", "is not UTF-8", "iconv -f ISO-8859-1 -t UTF-8"],
    ),
    "utf-16": (
        mapped("text/dev.de", lambda b: b.decode().encode("utf-16")),
        TEXT,
        ["text/dev.de: is UTF-16 text", "iconv -f UTF-16 -t UTF-8"],
    ),
    "NUL": (
        mapped("text/test.de", lambda b: b[:60] + b"\0" + b[60:]),
        TEXT,
        ["text/test.de, line 2: contains a NUL"],
    ),
    "huge line": (
        mapped("text/train.de", lambda b: b.replace(b"\n", b" " * 100_000 + b"\n", 1)),
        TEXT,
        ["text/train.de, line 1: has 100,0", "give one sentence per line"],
    ),
    "truncated gzip": (cut_gzip, TEXT, ["text/train.de.gz: the gzip file is truncated", "copy it again"]),
    "no gzip": (fake_gzip, TEXT, ["text/train.de.gz: is not a gzip file", "remove .gz from its name"]),
    "same file": (
        link,
        TEXT,
        ["text/train.de and text/train.en: are the same file", "give the two languages"],
    ),
    "same text": (
        lambda w: (w / "text/train.en").write_bytes((w / "text/train.de").read_bytes()),
        TEXT,
        ["text/train.de and text/train.en: contain the same text", "give two languages"],
    ),
    "swapped": (swap, TEXT, ["text/train.de: should be 'de' but looks like en", "--no-language-check"]),
    "another script": (
        lambda w: [(w / f"text/{s}.de").rename(w / f"text/{s}.ru") for s in ("train", "dev", "test")],
        [*TEXT, "--source", "ru"],
        ["text/train.ru: should be 'ru' but looks like Latin letters", "--no-language-check"],
    ),
    "empty test line": (
        mapped("text/test.en", lambda b: b"\n" + b.split(b"\n", 1)[1]),
        TEXT,
        ["text/test.en, sentence 1: is empty", "correct it in both languages"],
    ),
    "everything dropped": (
        nothing,
        [*TEXT, "--max-length", "1"],
        ["text/train.de: cleaning leaves no", "correct the text or"],
    ),
    "ragged TSV": (
        change("text/a.tsv", b"a\tb\nc\n"),
        [*TEXT, "--train", "a.tsv"],
        ["text/a.tsv, line 2: has 1 columns where line 1 has 2", "correct that line"],
    ),
    "broken JSON": (
        change("text/a.jsonl", b'{"de": "a", "en": "b"}\n{"de": "c"'),
        [*TEXT, "--valid", "a.jsonl"],
        ["text/a.jsonl, line 2: is not JSON", "give one object per line"],
    ),
    "other columns": (
        change("text/a.jsonl", b'{"src": "a", "tgt": "b"}\n'),
        [*TEXT, "--test", "a.jsonl"],
        ["text/a.jsonl, line 1: has no columns de and en, but src, tgt", "--columns SOURCE,TARGET"],
    ),
    "broken parquet": (
        change("text/a.parquet", b"PAR1"),
        [*TEXT, "--train", "a.parquet"],
        ["text/a.parquet: is not a readable parquet file", "copy it again"],
    ),
    "one column": (nothing, [*TEXT, "--columns", "de"], ["--columns must name two different columns"]),
    "no data set": (
        lambda w: (w / "set").mkdir(),
        ["multi30k.de-en", "--from", "set"],
        ["--from set: contains neither train.de", ".parquet, .jsonl", "the folder set is empty"],
    ),
    "hub without network": (
        nothing,
        ["multi30k.de-en"],
        ["hub data set bentrevett/multi30k: cannot be loaded", "check the network", "--from FOLDER"],
    ),
    "data set without splits": (
        data_set,
        ["multi30k.de-en", "--from", "set"],
        ["set: has no split validation but train", "'hub.valid'"],
    ),
    "vocabulary: none": (
        nothing,
        [*TEXT, "--vocab-size", "0"],
        ["--vocab-size must be a whole number from 10"],
    ),
    "vocabulary: a word": (nothing, [*TEXT, "--vocab-size", "many"], ["--vocab-size", "'many'", "--help"]),
    "vocabulary: too many": (
        nothing,
        [*TEXT, "--vocab-size", "8000"],
        ["subwords.vocab_size 8000 is too large for this training text", "give --vocab-size"],
    ),
    "vocabulary: too few": (
        nothing,
        [*TEXT, "--vocab-size", "10"],
        ["subwords.vocab_size 10 is too small", "give --vocab-size"],
    ),
    "vocabulary: other model": (
        nothing,
        [*TEXT, "--subword-model", "wp"],
        ["--subword-model must be one of bpe, unigr"],
    ),
    "preparation": (
        yaml(CORPUS + "preparation: moses\n"),
        ["mine.yaml"],
        ["mine.yaml: 'preparation' must be one of sentencepiece, moses-bpe, but is moses"],
    ),
    "paper: key of the other": (
        yaml(CORPUS + "preparation: paper\n"),
        ["mine.yaml"],
        ["mine.yaml: unknown key 'subwords.vocab_size'", "valid keys: lowercase, operations, joint"],
    ),
    "paper: option of the other": (
        yaml(PAPER),
        ["mine.yaml", "--vocab-size", "100"],
        [
            "--vocab-size: the preparation 'moses-bpe' has no 'subwords.vocab_size' but lowercase, op",
            "leave the option out",
        ],
    ),
    "paper: option without it": (
        nothing,
        [*TEXT, "--operations", "100"],
        ["--operations: the preparation 'sentencepiece' has no 'subwords.operations' but vocab_size", "leave"],
    ),
    "paper: no merges": (
        yaml(PAPER),
        ["mine.yaml", "--operations", "0"],
        ["--operations must be a whole number from 1 to"],
    ),
    "paper: threshold": (
        yaml(PAPER.replace("70", "70, vocabulary_threshold: 0")),
        ["mine.yaml"],
        ["mine.yaml: 'subwords.vocabulary_threshold' must be a whole number or null of at least 1, but is 0"],
    ),
    "paper: dictionary": (
        yaml(PAPER.replace("70", "70, dictionary: shared")),
        ["mine.yaml"],
        ["mine.yaml: 'subwords.dictionary' must be one of joined, separate, but is shared"],
    ),
    "paper: empty line": (
        lambda w: (yaml(PAPER)(w), mapped("text/dev.en", blank_first)(w)),
        ["mine.yaml"],
        ["text/dev.en, sentence 1: is empty", "correct it in both languages"],
    ),
    "paper: all dropped": (
        yaml(PAPER),
        ["mine.yaml", "--max-length", "1"],
        ["text/train.de: cleaning leaves no training pair (empty 2, too long 205)", "correct the text or the limits"],
    ),
    "paper: words of one letter": (
        lambda w: (yaml(PAPER)(w), one_letter(w)),
        ["mine.yaml"],
        ["subwords.operations 70: no word of the training text has two letters"],
    ),
    "ratio below one": (
        nothing,
        [*TEXT, "--max-ratio", "0.5"],
        ["--max-ratio must be a number or null from 1 to"],
    ),
    "ratio not a number": (nothing, [*TEXT, "--max-ratio", "nan"], ["--max-ratio must be a number"]),
    "length zero": (nothing, [*TEXT, "--max-length", "0"], ["--max-length must be a whole number from 1"]),
    "name with a path": (nothing, [*TEXT, "--name", "../x"], ["--name '../x': must be letters"]),
    "unknown option": (nothing, [*TEXT, "--vocab", "9"], ["unrecognized arguments: --vocab", "--help"]),
    "no corpus": (nothing, [], ["required: CORPUS", "--help"]),
    "text for the generator": (
        nothing,
        ["quickstart", "--from", "text"],
        ["--from: corpus 'quickstart'", "leave"],
    ),
    "generator reversed": (
        nothing,
        ["quickstart", "--source", "en", "--target", "de"],
        ["de to en only", "leave"],
    ),
    "generator exhausted": (
        yaml(CORPUS.replace("files", "quickstart") + "quickstart: {train: 9000000}\n"),
        ["mine.yaml"],
        ["mine.yaml: the quickstart corpus has at most", "change the sizes"],
    ),
    "vocabulary of nothing": (
        nothing,
        [*FILES, "--from", "text", "--subwords-of", "toy"],
        ["data/toy: no prepared corpus"],
    ),
    "vocabulary taken and learned": (
        nothing,
        [*TEXT, "--subwords-of", "toy"],
        ["--vocab-size: --subwords-of learns no sub-word models; leave one of them out"],
    ),
    "foreign folder": (
        foreign,
        [*TEXT, "--force"],
        ["data/toy: exists and is not a prepared corpus", "choose another"],
    ),
    "other corpus": (other_corpus, TEXT, ["data/toy: was prepared from other text", "--force", "--name"]),
    "other corpus with files of the user's": (
        with_notes,
        [*TEXT, "--force"],
        ["data/toy: contains unexpected files (raw/train.de)", "move them away"],
    ),
    "a link to another corpus": (linked, [*TEXT, "--force"], ["data/toy: is a link", "remove it, or build where"]),
    "a name that is a path": (nothing, [*TEXT, "--name", "toy.yaml"], ["--name 'toy.yaml'", "leave the ending out"]),
    "columns of no table": (nothing, [*TEXT, "--columns", "a,b"], ["--columns: is for tables", "leave it out"]),
    "a sum of no archive": (
        nothing,
        ["iwslt14.de-en", *TEXT[5:], "--sha256", "0" * 64],
        ["--sha256: is for an archive", "leave it out"],
    ),
    "a validation set that is taken": (nothing, ["iwslt14.de-en", *TEXT[5:]], ["--valid: iwslt14.de-en takes its"]),
    "data is a file": (change("data", b""), TEXT, ["data", "--data"]),
    "data is read-only": (
        nothing,
        [*TEXT, "--data", "/proc/nowhere"],
        ["/proc/nowhere", "folder to write in with --data"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(work: Path, name: str) -> None:
    spoil, arguments, parts = WRONG[name]
    spoil(work)
    before = tree(work)
    refused(prepare(work, *arguments), parts)
    assert tree(work) == before


def refused(done: "subprocess.CompletedProcess[str]", parts: list[str]) -> None:
    """Whether it failed with one line for the user, which holds every one of `parts`."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode in (1, 2)
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("kilobytes", [1, 10])
def test_full_disk(work: Path, kilobytes: int) -> None:
    """A limit on the size of files stands for a disk that is full when text or pieces are written."""
    before = tree(work)
    refused(
        prepare(work, *TEXT, shell=f"ulimit -f {kilobytes};"),
        ["data/toy: File too large", "ulimit -f"],
    )
    assert tree(work) == before


def break_preprocess(work: Path) -> str:
    """Write a fairseq-preprocess that finds the disk full; returns what puts it before the real one."""
    (work / "fake" / "fairseq_cli").mkdir(parents=True)
    (work / "fake" / "fairseq_cli" / "__init__.py").touch()
    content = "raise OSError(28, 'No space left on device', 'bin/train.bin')"
    (work / "fake" / "fairseq_cli" / "preprocess.py").write_text(content)
    return f"export PYTHONPATH={work / 'fake'};"


def test_full_disk_under_fairseq_preprocess(work: Path) -> None:
    broken = break_preprocess(work)
    before = tree(work)
    done = prepare(work, *TEXT, shell=broken)
    refused(done, ["fairseq-preprocess failed", "No space left on device", "free some space", "--data"])
    assert tree(work) == before


def test_a_corpus_survives_a_rebuild_that_fails(work: Path, prepared: Path) -> None:
    subprocess.run(["cp", "-r", str(prepared / "data"), str(work / "data")], check=True)
    before = tree(work)
    refused(prepare(work, *TEXT, "--vocab-size", "8000", "--force"), ["subwords.vocab_size 8000 is too large"])
    assert tree(work) == before


def test_a_link_to_a_recipe_finds_the_checkout(work: Path) -> None:
    """And so does a shell that looks for folders in places of its own, and prints where it has found one."""
    (work / "compare").symlink_to(SCRIPT.parent / "compare.sh")
    (work / "recipes").mkdir()
    variables = environment() | {"CDPATH": f".:{SCRIPT.parent.parent}"}
    for command in (work / "compare", os.path.relpath(SCRIPT.parent / "compare.sh", SCRIPT.parent.parent)):
        call = ["bash", str(command), "--help"]
        done = subprocess.run(call, env=variables, cwd=SCRIPT.parent.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "paired test" in done.stdout


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate"])
def test_python_without_the_packages(name: str, work: Path) -> None:
    """The scripts alone, away from the checkout and its .venv."""
    (work / "recipes").mkdir()
    for file in (f"{name}.sh", "environment.sh"):
        (work / "recipes" / file).write_bytes((SCRIPT.parent / file).read_bytes())
    variables = environment() | {"PYTHON": "/nowhere/python"}
    command = ["bash", str(work / "recipes" / f"{name}.sh")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    refused(done, ["/nowhere/python lacks", "make quickstart", "set PYTHON"])
