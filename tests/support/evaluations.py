"""Evaluations of made-up translations, for the tests of what reads them."""

import random
from pathlib import Path
from typing import Any

from recipes.config import search
from recipes.metrics import quality, results, sentences
from recipes.metrics.sentences import Sentence

TEXT = "a man dog park walks his in the through snow and plays ball with children two red green house , ."
WORDS = TEXT.split()
DOCUMENTS = ["7", "7", "12", "12", "12", "3"]


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
    folder: Path,
    sources: list[str],
    references: list[str],
    hypotheses: list[str],
    *,
    documents: bool = True,
    **facts: Any,
) -> Path:
    """An evaluation as recipes/evaluate.sh writes it (tests/recipes/test_evaluate.py has a real one).

    `facts` are other values of fields of scores.json.
    """
    folder.mkdir(parents=True)
    scores = quality.score(hypotheses, references, "en")
    sentence_scores = sentences.sentence_scores(
        hypotheses, references, {name: score.signature for name, score in scores.items()}
    )
    tokens = [[line.replace("children", "child ren") for line in lines] for lines in (hypotheses, references)]
    scores["tokenised_bleu"] = quality.tokenised_bleu(*tokens)
    lines = [
        Sentence(
            number=n + 1,
            source=source,
            reference=reference,
            hypothesis=hypothesis,
            hypothesis_tokens=tokens[0][n],
            reference_tokens=tokens[1][n],
            document=DOCUMENTS[n * 6 // len(sources)] if documents else None,
            score=-0.5,
            tokens=hypothesis.split(),
            bleu=sentence_scores[n][0],
            chrf=sentence_scores[n][1],
        )
        for n, (source, reference, hypothesis) in enumerate(zip(sources, references, hypotheses, strict=True))
    ]
    texts = {"hypotheses.txt": hypotheses, "references.txt": references, "tokens.txt": tokens[0]}
    for name, text in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    (folder / sentences.NAME).write_text(sentences.text(lines), encoding="utf-8")
    known: dict[str, Any] = {
        **scores,
        "corpus": "toy",
        "source_language": "de",
        "split": "test",
        "sentences": len(sources),
        "model": folder.parent.name,
        "checkpoint": "checkpoint_best.pt",
        "beam": 5,
        "lenpen": 1.0,
        "search": search.DEFAULTS,
        "parameters": 7,
        "tokens": 9,
        "seconds": 1.0,
        "tokens_per_second": 9.0,
        "device": "CPU",
        "threads": 1,
        "versions": {"sacrebleu": "1"},
        "command": "x",
    }
    results.TranslationScores.model_validate({**known, **facts}).write(folder / results.NAME)
    return folder


def language_model(folder: Path) -> None:
    """Put the results of a language model in the place of an evaluation's scores.json."""
    path = folder / results.NAME
    scores = results.read(path)
    kept = scores.model_dump(include=set(results.Scores.model_fields), by_alias=False)
    figures = {"perplexity": {"word": 9.0, "subword": 3.0}, "bits_per_character": 1.5, "words": 5, "characters": 20}
    results.LanguageModelScores.model_validate({**kept, **figures}).write(path)
