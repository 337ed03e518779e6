"""BPE against subword-nmt's command line, and plain text to tokens and back by Moses and BPE."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.tokenization import bpe
from recipes.tokenization.moses_bpe import MosesBpe
from thoth_core.errors import UserError

STEMS = ["haus", "tür", "garten", "straßen", "über", "läufer", "&apos;", "&quot;", "ein", "你好", "được", "x"]


def lines(seed: int, count: int) -> list[str]:
    """Compounds of a few stems, some of them often."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choices(STEMS, weights=range(len(STEMS), 0, -1), k=draw.choice((1, 1, 1, 2, 3))))

    return [" ".join(word() for _ in range(draw.randint(0, 9))) for _ in range(count)]


def subword_nmt(folder: Path, command: str, *arguments: str, text: list[str]) -> str:
    """What subword-nmt's COMMAND writes for `text`."""
    call = [sys.executable, "-X", "utf8", "-m", f"subword_nmt.{command}", *arguments]
    content = "".join(f"{line}\n" for line in text)
    return subprocess.run(call, cwd=folder, input=content, check=True, capture_output=True, encoding="utf-8").stdout


@pytest.fixture(scope="module")
def train() -> list[str]:
    return lines(1, 300)


@pytest.fixture(scope="module")
def codes(train: list[str]) -> str:
    return bpe.learn(train, 60)


def test_codes_and_tokens_are_those_of_the_command_line(train: list[str], codes: str, tmp_path: Path) -> None:
    assert subword_nmt(tmp_path, "learn_bpe", "-s", "60", text=train) == codes
    (tmp_path / "codes").write_text(codes, encoding="utf-8")
    unseen = [*lines(2, 100), " around ", "Ünseen öäü", ""]
    theirs = subword_nmt(tmp_path, "apply_bpe", "-c", "codes", text=unseen)
    ours = [*map(bpe.Merges(codes), unseen)]
    assert "".join(f"{line}\n" for line in ours) == theirs
    assert any("@@" in line for line in ours)
    assert [bpe.joined(line).strip() for line in ours] == [line.strip() for line in unseen]


def test_vocabulary_and_threshold_are_those_of_the_command_line(train: list[str], codes: str, tmp_path: Path) -> None:
    (tmp_path / "codes").write_text(codes, encoding="utf-8")
    plain = [*map(bpe.Merges(codes), train)]
    vocabulary = bpe.vocabulary(plain)
    assert subword_nmt(tmp_path, "get_vocab", text=plain) == vocabulary
    (tmp_path / "vocab").write_text(vocabulary, encoding="utf-8")
    options = ("-c", "codes", "--vocabulary", "vocab", "--vocabulary-threshold", "40")
    theirs = subword_nmt(tmp_path, "apply_bpe", *options, text=train)
    ours = [*map(bpe.Merges(codes, vocabulary, 40), train)]
    assert "".join(f"{line}\n" for line in ours) == theirs
    assert ours != plain


def test_a_text_with_fewer_merges_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert bpe.learn(["ab ab cd"], 50) == "#version: 0.2\na b</w>\n"
    printed = capsys.readouterr().err
    assert printed == "warning: subwords.operations 50: the training text has only 1 pairs that occur twice\n"


@pytest.mark.parametrize("text", [[], ["a b c", "d"]])
def test_a_text_without_merges_is_refused(text: list[str]) -> None:
    with pytest.raises(UserError, match=r"^subwords.operations 50: no word of the training text has two letters"):
        bpe.learn(text, 50)


def test_joined() -> None:
    assert bpe.joined("a@@ b c@@ d@@ e") == "ab cde"
    assert bpe.joined("a b@@") == "a b"
    assert bpe.joined("") == ""


# --- plain text to tokens and back --------------------------------------------------------------------------


@pytest.fixture
def english() -> MosesBpe:
    return MosesBpe("en", bpe.Merges(bpe.learn(["dogs dogs dogs do do &apos;s &apos;s"], 20)), lowercase=True)


def test_text_to_tokens_and_back(english: MosesBpe) -> None:
    tokens = english.segment("The Dog's do, DOGS!")
    assert tokens == ["t@@", "h@@", "e", "d@@", "o@@", "g", "&apos;s", "do", ",", "dogs", "!"]
    assert english.text(tokens) == "the dog's do, dogs!"
    assert english.marked(tokens) == ["▁t", "h", "e", "▁d", "o", "g", "▁'s", "▁do", "▁,", "▁dogs", "▁!"]
    assert english.scored(tokens, "The dog's DO.") == ("the dog &apos;s do , dogs !", "the dog &apos;s do .")
    assert english.segment(" ") == english.marked([]) == []
    assert english.text([]) == ""


def test_case_can_be_kept(english: MosesBpe) -> None:
    cased = MosesBpe("en", english._merges, lowercase=False)
    assert cased.text(cased.segment("The Dog's do.")) == "The Dog's do."
