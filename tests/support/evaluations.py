"""Evaluations of made-up translations, for the tests of what reads them."""

import json
import random
from pathlib import Path
from typing import Any

from recipes.metrics import quality, sentences
from recipes.metrics.sentences import Sentence

TEXT = "a man dog park walks his in the through snow and plays ball with children two red green house , ."
WORDS = TEXT.split()
TALKS = ["7", "7", "12", "12", "12", "3"]


def corpus(count: int) -> tuple[list[str], list[str]]:
    """Sources of 1 to 60 words, most of them short (TER takes long on long ones), and references."""
    draw = random.Random(1)
    longest = [60 if n % 8 == 0 else 12 for n in range(count)]
    references = [" ".join(draw.choices(WORDS, k=draw.randint(1, high))) for high in longest]
    return [" ".join(reversed(line.split())) for line in references], references


def translated(references: list[str], seed: int, errors: float) -> list[str]:
    """`references` with this share of other words, some left out."""
    draw = random.Random(seed)
    lines = []
    for line in references:
        words = [draw.choice(WORDS) if draw.random() < errors else word for word in line.split()]
        lines.append(" ".join(word for word in words if draw.random() > errors / 3))
    return lines


def evaluation(
    folder: Path, sources: list[str], references: list[str], hypotheses: list[str], *, talks: bool = True, **facts: Any
) -> Path:
    """An evaluation as recipes/evaluate.sh writes it (tests/recipes/test_evaluate.py has a real one)."""
    folder.mkdir(parents=True)
    scores = quality.score(hypotheses, references, "en")
    scored = sentences.sentence_scores(
        hypotheses, references, {name: told["signature"] for name, told in scores.items()}
    )
    tokens = [[line.replace("children", "child ren") for line in lines] for lines in (hypotheses, references)]
    scores["tokenised_bleu"] = quality.tokenised(*tokens)
    told = [
        Sentence(n + 1, source, reference, hypothesis, tokens[0][n], tokens[1][n],
                 TALKS[n * 6 // len(sources)] if talks else None, -0.5, hypothesis.split(), *scored[n])
        for n, (source, reference, hypothesis) in enumerate(zip(sources, references, hypotheses, strict=True))
    ]  # fmt: skip
    texts = {
        "hypotheses.txt": hypotheses,
        "references.txt": references,
        "tokens.txt": tokens[0],
        sentences.NAME: sentences.lines(told),
    }
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    known = {"corpus": "toy", "split": "test", "model": folder.parent.name, "checkpoint": "checkpoint_best.pt",
             "sentences": len(sources), "source_language": "de", "beam": 5, "lenpen": 1.0,
             "search": {"beam": 5, "lenpen": 1.0, "max-tokens": 2000}, "parameters": 7, "seconds": 1.0,
             "tokens_per_second": 9.0, "device": "CPU", "threads": 1, "versions": {"sacrebleu": "1"}, "command": "x",
             "commit": None}  # fmt: skip
    (folder / "scores.json").write_text(json.dumps({**scores, **known, **facts}), encoding="utf-8")
    return folder
