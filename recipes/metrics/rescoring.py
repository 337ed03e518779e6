"""Scoring an evaluation again from its sentences, without decoding."""

from recipes.metrics import quality, results, score_table, sentences
from recipes.metrics.results import Score
from recipes.metrics.systems import System
from recipes.storage import disk, provenance


def differences(system: System, scores: dict[str, Score], sentence_scores: list[tuple[float, float]]) -> list[str]:
    """A line for each difference between the files of `system` and its scores now."""
    lines = [
        f"the {key} of {quality.TITLES[metric]} is {recorded} in {results.NAME}, but {now} now"
        for metric, key, recorded, now in system.changed_scores(scores)
    ]
    for sentence, scored in zip(system.sentences, sentence_scores, strict=True):
        if (sentence.bleu, sentence.chrf) != scored:
            lines.append(f"{sentences.NAME} has other scores of sentence {sentence.number}")
            break
    return lines


def update(system: System, scores: dict[str, Score], sentence_scores: list[tuple[float, float]]) -> None:
    """Write the scores and sacreBLEU's version into the files of the evaluation, scores.json last.

    All is made before anything is written, so that a failure leaves the evaluation as it is.
    """
    versions = {**system.scores.versions, "sacrebleu": provenance.versions()["sacrebleu"]}
    updated = system.scores.model_copy(update={**scores, "versions": versions})
    lines = [
        sentence.model_copy(update={"bleu": bleu, "chrf": chrf})
        for sentence, (bleu, chrf) in zip(system.sentences, sentence_scores, strict=True)
    ]
    text, table = sentences.text(lines), score_table.table(updated)
    disk.write_atomically(system.folder / sentences.NAME, text)
    disk.write_atomically(system.folder / "scores.txt", table)
    updated.write(system.folder / results.NAME)
