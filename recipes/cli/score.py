"""Score evaluations again from their sentences: `python -m recipes.score EVALUATION...` (recipes/score.sh)."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.console import messages
from recipes.metrics import quality, sentences
from recipes.metrics import systems as comparing
from recipes.metrics.systems import System
from recipes.reporting import artifacts
from recipes.storage import disk, provenance
from thoth_core.errors import UserError


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="recipes/score.sh",
        allow_abbrev=False,
        description="Score evaluations again from their sentences.jsonl, without decoding, and say whether their "
        "scores.json holds. Exit status 1 if one does not.",
    )
    found.add_argument(
        "evaluations", metavar="EVALUATION", nargs="+", type=Path, help="the folder of an evaluation, or a run"
    )
    found.add_argument(
        "--update",
        action="store_true",
        help="write the new scores into scores.json, scores.txt and sentences.jsonl",
    )
    return found


def differences(system: System, scores: dict, sentence_scores: list[tuple[float, float]]) -> list[str]:
    """What the files of `system` say otherwise than it was scored now, a line each."""
    found = []
    for name in scores:
        told = system.scores[name]
        for key in ("signature", "score"):
            if told[key] != scores[name][key]:
                title = quality.title(name)
                found.append(f"the {key} of {title} is {told[key]} in scores.json, but {scores[name][key]} now")
    for sentence, now in zip(system.sentences, sentence_scores, strict=True):
        if (sentence.bleu, sentence.chrf) != now:
            found.append(f"{sentences.NAME} has other scores of sentence {sentence.number}")
            break
    return found


def score(arguments: argparse.Namespace) -> int:
    wrong = []
    for given in arguments.evaluations:
        system = comparing.open_system(given)
        artifacts.check_figures(system)  # scores.txt shows them
        print(f"Scoring {system.folder}: {len(system.sentences):,} sentences", flush=True)
        scores = system.measured()
        of_sentences = sentences.sentence_scores(*system.texts("bleu"), system.signatures)
        for name in scores:
            print(f"{quality.NAMES[name]:<22} {scores[name]['score']:6.2f}   {scores[name]['signature']}")
        found = differences(system, scores, of_sentences)
        if not found:
            print("scores.json holds")
        elif arguments.update:
            for line in found:
                print(f"mended: {line}")
            update(system, scores, of_sentences)
        else:
            wrong.append(f"{system.folder}: {found[0]}; recipes/score.sh --update {system.folder} writes it anew")
            print(f"does not hold: {found[0]}")
    if wrong:
        more = f" ({len(wrong) - 1} more do not hold)" if len(wrong) > 1 else ""
        raise UserError(wrong[0] + more)
    return 0


def update(system: System, scores: dict, of_sentences: list[tuple[float, float]]) -> None:
    """Write the scores into the evaluation's files; sacreBLEU's version goes with them. scores.json comes last.

    All is made before anything is written, so that what fails leaves the evaluation as it is.
    """
    known = {**system.scores, **scores}
    known["versions"] = {**known.get("versions", {}), "sacrebleu": provenance.versions()["sacrebleu"]}
    scored = [
        replace(sentence, bleu=bleu, chrf=chrf)
        for sentence, (bleu, chrf) in zip(system.sentences, of_sentences, strict=True)
    ]
    lines, table = "".join(f"{line}\n" for line in sentences.lines(scored)), quality.table(known)
    disk.write_atomically(system.folder / sentences.NAME, lines)
    disk.write_atomically(system.folder / "scores.txt", table)
    disk.write_json(system.folder / "scores.json", known)


def main() -> int:
    arguments = parser().parse_args(sys.argv[1:])
    with disk.disk_errors(Path()), messages.quiet_libraries():
        return score(arguments)


if __name__ == "__main__":
    errors.main(main)
