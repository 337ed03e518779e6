"""Evaluations of translation models, opened to be compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.metrics import quality, results, sentences
from recipes.metrics.quality import SignatureError
from recipes.metrics.results import Score, TranslationScores
from recipes.metrics.sentences import Sentence
from thoth_core.errors import UserError


@dataclass(frozen=True)
class System:
    """An evaluation of a translation model."""

    name: str  # as the user gave it
    folder: Path
    scores: TranslationScores  # scores.json
    sentences: list[Sentence]  # sentences.jsonl

    @property
    def test_set(self) -> str:
        """Corpus and split, for people."""
        return f"{self.scores.corpus}, {self.scores.split}"

    @property
    def documents(self) -> list[str] | None:
        """The document of each sentence; None where there are none."""
        documents = [sentence.document for sentence in self.sentences if sentence.document is not None]
        return documents if len(documents) == len(self.sentences) else None

    def texts(self, metric: str) -> tuple[list[str], list[str]]:
        """The hypotheses and references that `metric` compares; empty where a sentence has no tokens."""
        if metric == "tokenised_bleu":
            return (
                [sentence.hypothesis_tokens or "" for sentence in self.sentences],
                [sentence.reference_tokens or "" for sentence in self.sentences],
            )
        return [sentence.hypothesis for sentence in self.sentences], [sentence.reference for sentence in self.sentences]

    def rescored(self) -> dict[str, Score]:
        """The scores of the sentences by the installed sacreBLEU with the settings of scores.json."""
        scores: dict[str, Score] = {}
        for name, metric in quality.metrics_of(self.scores.signatures).items():
            quality.check_lines(*self.texts(name))
            scores |= quality.corpus_scores({name: metric}, *self.texts(name))
        return scores

    def changed_scores(self, scores: Mapping[str, Score]) -> Iterator[tuple[str, str, object, object]]:
        """Differences of `scores` from scores.json: (metric, "signature" or "score", value there, value now)."""
        recorded = self.scores.by_metric
        for metric, now in scores.items():
            for key in ("signature", "score"):
                if getattr(recorded[metric], key) != getattr(now, key):
                    yield metric, key, getattr(recorded[metric], key), getattr(now, key)

    def rescored_sentences(self) -> list[tuple[float, float]]:
        """(BLEU, chrF2) of each sentence by the installed sacreBLEU with the settings of scores.json."""
        return sentences.sentence_scores(*self.texts("bleu"), self.scores.signatures)


def evaluation_folder(path: Path) -> Path:
    """The evaluation that `path` is, or that lies in the run `path`; else a UserError with the remedy."""
    for folder in (path, path / "evaluation"):
        if (folder / results.NAME).is_file():
            return folder
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run, or an evaluation in it")
    if (path / "run.json").is_file():
        raise UserError(f"{path}: this run has no evaluation; evaluate its model first (recipes/evaluate.sh)")
    raise UserError(f"{path}: no {results.NAME} in it; give a run, or an evaluation (recipes/evaluate.sh)")


def open_system(path: Path) -> System:
    """The evaluation in `path`, an evaluation or a run.

    Raises:
        UserError: there is none, it is incomplete or damaged, or its model is a language model.
    """
    folder = evaluation_folder(path)
    scores = results.read(folder / results.NAME)
    if not isinstance(scores, TranslationScores):
        raise UserError(f"{folder}: evaluation of a language model, which has no translations; give translation models")
    try:
        quality.metrics_of(scores.signatures)
    except SignatureError as error:
        raise UserError(f"{folder / results.NAME}: {error}; {results.AGAIN}") from None
    return System(str(path), folder, scores, sentences.read(folder, scores.sentences))


def check_comparable(systems: Sequence[System]) -> None:
    """Raise a UserError unless all translated the same sentences, with the same references, and were scored alike."""
    first = systems[0]
    for position, system in enumerate(systems[1:], 1):
        for other in systems[:position]:
            if other.folder.resolve() == system.folder.resolve():
                raise UserError(f"{system.folder}: given twice; a system is not compared with itself")
        _check_same_sentences(system, first)
        signatures = (system.scores.signatures, first.scores.signatures)
        for name in quality.TITLES:
            own, expected = (by_metric.get(name, "(no such score)") for by_metric in signatures)
            if own != expected:
                raise UserError(
                    f"{system.folder}: {quality.TITLES[name]} has the signature {own}, that of {first.folder} "
                    f"{expected}; score both alike (recipes/score.sh --update)"
                )


def _check_same_sentences(system: System, first: System) -> None:
    if len(system.sentences) != len(first.sentences):
        raise UserError(
            f"{system.folder}: {len(system.sentences):,} sentences of {system.test_set}, but {first.folder} has "
            f"{len(first.sentences):,} of {first.test_set}; only translations of the same test set can be compared"
        )
    for own, expected in zip(system.sentences, first.sentences, strict=True):
        for name in ("source", "reference", "reference_tokens", "document"):
            if getattr(own, name) != getattr(expected, name):
                raise UserError(
                    f"{system.folder}: sentence {own.number} of {system.test_set} has another {name} than that of "
                    f"{first.test_set} in {first.folder}; only translations of the same test set can be compared"
                )


def check_scores(system: System) -> None:
    """Raise a UserError unless scores.json has the scores that the installed sacreBLEU gives sentences.jsonl."""
    path = system.folder / results.NAME
    for metric, key, recorded, now in system.changed_scores(system.rescored()):
        raise UserError(
            f"{path}: the {key} of {quality.TITLES[metric]} is {recorded}, but {sentences.NAME} gives {now}; "
            f"score again with: recipes/score.sh --update {system.folder}"
        )


def check_sentence_scores(system: System) -> None:
    """Raise a UserError unless each sentence has the BLEU and chrF2 that the installed sacreBLEU gives its text."""
    for sentence, (bleu, chrf) in zip(system.sentences, system.rescored_sentences(), strict=True):
        if (sentence.bleu, sentence.chrf) != (bleu, chrf):
            raise UserError(
                f"{system.folder / sentences.NAME}: BLEU and chrF2 of sentence {sentence.number} are {sentence.bleu} "
                f"and {sentence.chrf}, but its text gives {bleu} and {chrf}; score again with: "
                f"recipes/score.sh --update {system.folder}"
            )
