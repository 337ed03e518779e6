"""recipes.metrics.quality and score_table: sacreBLEU's numbers and signatures, and what it refuses to score."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import BLEU

from recipes.config import search
from recipes.metrics import quality, score_table
from recipes.metrics.results import TranslationScores
from thoth_core.errors import UserError

REFERENCES = [
    "The cat sat on the mat.",
    "A man is walking his dog in the park.",
    "Two children play football.",
]
HYPOTHESES = [
    "The cat sat on a mat.",
    "A man walks his dog in the park.",
    "Two children are playing football.",
]


def test_a_perfect_translation() -> None:
    scores = quality.score(REFERENCES, REFERENCES, "en")
    assert scores["bleu"].score == pytest.approx(100)
    assert scores["chrf"].score == pytest.approx(100)
    assert scores["ter"].score == 0


def test_the_scores_are_those_of_sacrebleus_command(tmp_path: Path) -> None:
    """The command line reads files and is another way through the library than ours."""
    (tmp_path / "ref").write_text("\n".join(REFERENCES) + "\n", encoding="utf-8")
    (tmp_path / "hyp").write_text("\n".join(HYPOTHESES) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "ref"), "-i", str(tmp_path / "hyp"), "-m",
               "bleu", "chrf", "ter", "-w", "6", "-f", "text"]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    scores = quality.score(HYPOTHESES, REFERENCES, "en")
    assert len(printed) == 3
    for line, name in zip(printed, quality.METRICS, strict=True):
        head, value = line.split(" = ")[:2]
        assert value.split()[0] == f"{scores[name].score:.6f}"
        assert head.split("|", 1)[1] == scores[name].signature


def test_signatures_tell_the_settings() -> None:
    scores = quality.score(HYPOTHESES, REFERENCES, "en")
    assert "case:mixed|eff:no|tok:13a|smooth:exp" in scores["bleu"].signature
    assert "nc:6|nw:0" in scores["chrf"].signature
    assert "tok:tercom|norm:no|punct:yes" in scores["ter"].signature


def test_the_target_language_chooses_the_tokeniser() -> None:
    chinese = ["我们在公园里踢足球。", "一个男人在遛狗。"]
    assert "tok:zh" in quality.score(chinese, chinese, "zh_Hans")["bleu"].signature
    scores = quality.score(chinese, chinese, "zh")
    assert "tok:zh" in scores["bleu"].signature
    for three_letters in ("zho", "cmn_Hans", "yue"):
        assert quality.score(chinese, chinese, three_letters) == scores
    assert "tok:ja-mecab" in quality.score(chinese, chinese, "jpn")["bleu"].signature
    assert scores["bleu"].score == pytest.approx(BLEU(tokenize="zh").corpus_score(chinese, [chinese]).score)


@pytest.mark.parametrize(
    ("hypotheses", "references", "words"),
    [
        ([], [], "nothing to score"),
        (["a"], [], "nothing to score"),
        (["a", "b"], ["a"], "2 translations for 1 references"),
        ([], ["a"], "0 translations for 1 references"),
        (["a", "b"], ["", " "], "all references are empty"),
    ],
)
def test_what_cannot_be_scored_is_refused(hypotheses: list[str], references: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        quality.score(hypotheses, references, "en")


def test_empty_translations_score_zero() -> None:
    scores = quality.score(["", "", ""], REFERENCES, "en")
    assert scores["bleu"].score == 0
    assert scores["chrf"].score == 0
    assert scores["ter"].score == 100


def known(**facts: Any) -> TranslationScores:
    """As in scores.json; `facts` are other values of its fields."""
    fields: dict[str, Any] = {
        **quality.score(HYPOTHESES, REFERENCES, "en"),
        "corpus": "c",
        "model": "m",
        "split": "test",
        "sentences": 3,
        "seconds": 1.25,
        "tokens_per_second": 1234.5,
        "parameters": 5_465_088,
        "checkpoint": "checkpoint_best.pt",
        "updates": 1200,
        "training_seconds": 90.0,
        "beam": 5,
        "lenpen": 1.0,
        "device": "CPU",
        "threads": 2,
        "command": "recipes/evaluate.sh c m",
        "commit": "abc",
        "versions": {"torch": "2"},
        "source_language": "de",
        "search": search.DEFAULTS,
        "tokens": 1543,
    }
    return TranslationScores.model_validate({**fields, **facts})


def test_the_table_holds_every_score_and_setting() -> None:
    facts = known()
    table = score_table.table(facts)
    for name in quality.METRICS:
        assert f"{getattr(facts, name).score:.2f}" in table
        assert getattr(facts, name).signature in table
    for word in (
        "5,465,088",
        "checkpoint_best.pt",
        "1,200",
        "beam 5",
        "1,234",
        "1.5 minutes",
        "2 threads",
        "abc",
    ):
        assert word in table
    assert "BLEU = " not in table  # that is the last line of an evaluation alone
    assert "truncated" not in table


def test_the_table_of_an_ensemble_names_its_models() -> None:
    """With the training of all together, where it is known of all."""
    other = {"model": "n", "checkpoint": "the average of a.pt, b.pt", "updates": None, "checkpoint_seconds": 30.0}
    of_two = known(checkpoint_seconds=60.0, truncated=1234, ensemble=[other])
    lines = score_table.table(of_two).splitlines()
    assert lines[0].endswith("model m + n")
    for line in (
        "checkpoint   m (checkpoint_best.pt) + n (the average of a.pt, b.pt)",
        "updates      1,200 + unknown",
        "training     1.5 minutes to these checkpoints, all models together",
        "truncated    1,234 sentences whose source was cut to the model's length",
    ):
        assert line in lines
    of_three = known(checkpoint_seconds=60.0, ensemble=[other, other | {"checkpoint_seconds": None}])
    assert "training " not in score_table.table(of_three)
