"""Evaluations side by side: what makes them comparable, sacreBLEU's paired tests, BLEU of parts of the test set."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config import schema
from recipes.config.schema import Value
from recipes.metrics import quality, sentences
from recipes.metrics.sentences import Sentence
from thoth_core.errors import UserError

# Upper ends of the classes of sentences by the length of their source.
LENGTHS = (10, 20, 30, 40, 50)
# Languages written without spaces between words: their length is counted in characters.
UNSPACED = ("ja", "km", "lo", "my", "th", "zh")
# What scores.json must hold, and of what kind that is; then what else of it is read where it is there. What may be
# null may be missing too. (`shown.check_figures` has the figures that a report shows.)
NEEDED: dict[str, Any] = {
    **dict.fromkeys(("corpus", "split", "model", "checkpoint", "source_language", "command"), Value(str)),
    "sentences": Value(int),
    "search": {"beam": Value(int), "lenpen": Value(float), "max-tokens": Value(int)},
    "commit": Value((str, type(None))),
}
_MODEL: dict[str, Any] = {
    **dict.fromkeys(("model", "checkpoint"), Value(str)),
    **dict.fromkeys(("updates", "checkpoint_seconds"), Value((float, type(None)))),
}
OPTIONAL: dict[str, Any] = {
    "target_language": Value(str),
    "versions": {},
    "tuned": {"split": Value(str), "rows": []},
    "ensemble": [_MODEL],
    "exits": {"policy": Value(str), "blocks": Value(int)},
    "overrides": {},
    "truncated": Value(int),
}


@dataclass(frozen=True)
class System:
    """An evaluation of a translation model."""

    name: str  # as it was given
    folder: Path
    scores: dict[str, Any]  # scores.json
    sentences: list[Sentence]

    @property
    def signatures(self) -> dict[str, str]:
        return {name: self.scores[name]["signature"] for name in quality.present(self.scores)}

    def texts(self, metric: str) -> tuple[list[str], list[str]]:
        """The hypotheses and references that `metric` compares; empty where a sentence has no tokens."""
        kind = "_tokens" if metric == "tokenised_bleu" else ""
        sides = ([getattr(s, f"{side}{kind}") or "" for s in self.sentences] for side in ("hypothesis", "reference"))
        hypotheses, references = sides
        return hypotheses, references

    def measured(self) -> dict[str, Any]:
        """What sacreBLEU, as it is installed, makes of the sentences with the settings of scores.json."""
        found: dict[str, Any] = {}
        for name, metric in quality.metrics_of(self.signatures).items():
            quality.check(*self.texts(name))
            found |= quality.measured({name: metric}, *self.texts(name))
        return found

    @property
    def talks(self) -> list[str] | None:
        """The talk of each sentence; None where there are none."""
        found = [sentence.talk for sentence in self.sentences if sentence.talk is not None]
        return found if len(found) == len(self.sentences) else None


def folder_of(given: Path) -> Path:
    """The evaluation that `given` is, or that lies in the run `given`; else a UserError with the remedy."""
    for folder in (given, given / "evaluation"):
        if (folder / "scores.json").is_file():
            return folder
    if not given.is_dir():
        raise UserError(f"{given}: no such folder; give a run, or an evaluation in it")
    if (given / "run.json").is_file():
        raise UserError(f"{given}: this run has no evaluation; evaluate its model first (recipes/evaluate.sh)")
    raise UserError(f"{given}: holds no scores.json; give a run, or an evaluation (recipes/evaluate.sh)")


def open_system(given: Path) -> System:
    """The evaluation in `given`; a UserError if it is none of a translation model, incomplete or damaged."""
    folder = folder_of(given)
    path = folder / "scores.json"
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not JSON'}; evaluate anew") from None
    if not isinstance(scores, dict):
        raise UserError(f"{path}: not a JSON object; evaluate anew")
    if "perplexity" in scores:
        raise UserError(f"{folder}: of a language model, which has no translations; give translation models")
    for name in (*NEEDED, *quality.METRICS):
        if name not in scores:
            raise UserError(f"{path}: has no {name}; evaluate anew (recipes/evaluate.sh)")
    for name in quality.present(scores):
        told = scores[name]
        known = (
            isinstance(told, dict) and isinstance(told.get("score"), float) and isinstance(told.get("signature"), str)
        )
        if not known:
            raise UserError(f"{path}: {name} must have a score and a signature; evaluate anew (recipes/evaluate.sh)")
    there = [name for name in OPTIONAL if name in scores and (name, scores[name]) != ("tuned", None)]
    kinds = NEEDED | {name: OPTIONAL[name] for name in there}
    schema.check_written(scores, kinds, str(path), "evaluate anew (recipes/evaluate.sh)")
    return System(str(given), folder, scores, sentences.read(folder, scores["sentences"]))


def check_comparable(systems: Sequence[System]) -> None:
    """Raise a UserError unless all translated the same sentences, with the same references, and were scored alike."""
    first = systems[0]
    for position, system in enumerate(systems[1:], 1):
        for other in systems[:position]:
            if other.folder.resolve() == system.folder.resolve():
                raise UserError(f"{system.folder}: given twice; a system is not compared with itself")
        if len(system.sentences) != len(first.sentences):
            raise UserError(
                f"{system.folder}: {len(system.sentences):,} sentences of {what(system)}, but {first.folder} has "
                f"{len(first.sentences):,} of {what(first)}; only translations of the same test set can be compared"
            )
        for mine, its in zip(system.sentences, first.sentences, strict=True):
            for name in ("source", "reference", "reference_tokens", "talk"):
                if getattr(mine, name) != getattr(its, name):
                    raise UserError(
                        f"{system.folder}: sentence {mine.number} of {what(system)} has another {name} than that of "
                        f"{what(first)} in {first.folder}; only translations of the same test set can be compared"
                    )
        for name in quality.present({**system.scores, **first.scores}):
            mine_is, its_is = (found.signatures.get(name, "(no such score)") for found in (system, first))
            if mine_is != its_is:
                raise UserError(
                    f"{system.folder}: {quality.title(name)} has the signature {mine_is}, that of {first.folder} "
                    f"{its_is}; score both alike (recipes/score.sh --update)"
                )


def what(system: System) -> str:
    """The test set, for people."""
    return f"{system.scores['corpus']}, {system.scores['split']}"


def check_scores(system: System) -> None:
    """Raise a UserError unless scores.json is what sacreBLEU, as it is installed, makes of sentences.jsonl."""
    path, again = system.folder / "scores.json", f"score anew with: recipes/score.sh --update {system.folder}"
    for name, found in system.measured().items():
        told, title = system.scores[name], quality.title(name)
        for key in ("signature", "score"):
            if told[key] != found[key]:
                raise UserError(
                    f"{path}: the {key} of {title} is {told[key]}, but {sentences.NAME} gives {found[key]}; {again}"
                )


def check_sentence_scores(system: System) -> None:
    """Raise a UserError unless BLEU and chrF2 of each sentence are what sacreBLEU, as it is installed, makes of it."""
    scored = sentences.sentence_scores(*system.texts("bleu"), system.signatures)
    for sentence, (bleu, chrf) in zip(system.sentences, scored, strict=True):
        if (sentence.bleu, sentence.chrf) != (bleu, chrf):
            raise UserError(
                f"{system.folder / sentences.NAME}: BLEU and chrF2 of sentence {sentence.number} are {sentence.bleu} "
                f"and {sentence.chrf}, but its text gives {bleu} and {chrf}; score anew with: "
                f"recipes/score.sh --update {system.folder}"
            )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let sacreBLEU, which reads its seed from the environment, draw with `seed`."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


def paired(
    systems: Sequence[System], *, test: str, samples: int, seed: int, said: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, Any]]:
    """sacreBLEU's paired test of every system against the first, by the names of scoring.NAMES.

    `test` is "bs" (paired bootstrap resampling) or "ar" (approximate randomisation), `samples` the resamples or trials.
    Each value holds the test's `signature` and a list `systems` of score, mean and ci (sacreBLEU's half width of the
    95% interval around the mean of resamples; with "ar" of 1,000 of them) and p_value (None for the first; 1 where
    the texts are the first's, for which sacreBLEU, which counts differences above 0, has the smallest).
    """
    from sacrebleu.significance import PairedTest

    found: dict[str, dict[str, Any]] = {}
    for name, metric in quality.metrics_of(systems[0].signatures).items():
        said(f"Testing {quality.title(name)}: {samples:,} {'resamples' if test == 'bs' else 'trials'}")
        named: list[tuple[str, Sequence[str]]] = [(system.name, system.texts(name)[0]) for system in systems]
        with seeded(seed):
            paired_test = PairedTest(
                named,
                {name: metric},
                [systems[0].texts(name)[1]],
                test_type=test,
                n_samples=samples,
                n_ar_confidence=0 if test == "ar" else -1,
            )
            signatures, results = paired_test()
        (title,) = signatures
        rows: list[Any] = results[title]
        found[name] = {
            "signature": str(signatures[title]),
            "systems": [
                {
                    "score": float(row.score),
                    "mean": float(row.mean),
                    "ci": float(row.ci),
                    "p_value": None if row.p_value is None else 1.0 if texts == named[0][1] else float(row.p_value),
                }
                for row, (_, texts) in zip(rows, named, strict=True)
            ],
        }
    return found


def spaced(language: str) -> bool:
    """Whether words of `language` stand between spaces."""
    return quality.two_letters(language) not in UNSPACED


def length(sentence: str, language: str) -> int:
    """Words between spaces, or characters where words have none."""
    return len(sentence.split()) if spaced(language) else len(sentence.replace(" ", ""))


def by_length(systems: Sequence[System]) -> list[dict[str, Any]]:
    """BLEU of the sentences of each class of LENGTHS, by the length of their source."""
    language = systems[0].scores["source_language"]
    lengths = [length(sentence.source, language) for sentence in systems[0].sentences]
    low, parts = 0, {}
    for high in LENGTHS:
        parts[f"{low + 1} to {high}" if low else f"up to {high}"] = [
            i for i, n in enumerate(lengths) if low < n <= high
        ]
        low = high
    parts[f"above {low}"] = [i for i, n in enumerate(lengths) if n > low]
    parts[f"up to {LENGTHS[0]}"] += [i for i, n in enumerate(lengths) if n == 0]
    return bleu_of_parts(systems, parts)


def by_talk(systems: Sequence[System]) -> list[dict[str, Any]]:
    """BLEU of each talk, in the order of the test set; empty where there are no talks."""
    parts: dict[str, list[int]] = {}
    for index, talk in enumerate(systems[0].talks or []):
        parts.setdefault(talk, []).append(index)
    return bleu_of_parts(systems, parts)


def bleu_of_parts(systems: Sequence[System], parts: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """{"part", "sentences", "bleu": [of each system]} of each of `parts` that has sentences.

    A part is scored as if it were a corpus, so that the mean over parts is not the score of the whole.
    """
    metric = {"bleu": quality.metrics_of(systems[0].signatures)["bleu"]}
    rows = []
    for part, chosen in parts.items():
        if not chosen:
            continue
        scores = []
        for system in systems:
            hypotheses, references = ([texts[i] for i in chosen] for texts in system.texts("bleu"))
            scores.append(quality.measured(metric, hypotheses, references)["bleu"]["score"])
        rows.append({"part": part, "sentences": len(chosen), "bleu": scores})
    return rows


def search(system: System) -> str:
    """How a system was decoded, for people."""
    scores = system.scores
    told = f"beam {scores['search']['beam']}, length penalty {scores['search']['lenpen']:g}"
    told += f" (tuned on {scores['tuned']['split']})" if scores.get("tuned") else ""
    options = ", ".join(f"{name}={value}" for name, value in scores.get("overrides", {}).items())
    return f"{told}; {quality.checkpoint(scores)}" + (f"; {options}" if options else "")


def table(comparison: Mapping[str, Any], systems: Sequence[System]) -> str:
    """Markdown."""
    numbers = [str(position) for position in range(1, len(systems) + 1)]
    tests = comparison["tests"]
    titles = [quality.title(name) for name in tests]
    lines = [f"# {what(systems[0])}: {len(systems[0].sentences):,} sentences", ""]
    lines += row("", "system", "decoded with", *(cell for title in titles for cell in (title, "95% interval", "p")))
    lines += row(*["---"] * (3 + 3 * len(titles)))
    for position, system in enumerate(systems):
        cells = []
        for name in tests:
            found = tests[name]["systems"][position]
            p_value = "baseline" if found["p_value"] is None else f"{found['p_value']:.4f}"
            cells += [f"{found['score']:.2f}", f"{found['mean']:.2f} ± {found['ci']:.2f}", p_value]
        lines += row(numbers[position], system.name, search(system), *cells)
    lines += ["", comparison["meaning"], ""]
    lines += [f"- {title}: `{tests[name]['signature']}`" for name, title in zip(tests, titles, strict=True)]
    unit = comparison["length_unit"]
    for heading, rows in ((f"source, {unit}", comparison["by_length"]), ("talk", comparison["by_talk"])):
        if rows:
            lines += ["", f"BLEU by {'the length of the source' if unit in heading else 'talk'}:", ""]
            lines += row(heading, "sentences", *numbers) + row(*["---"] * (2 + len(numbers)))
            for part in rows:
                lines += row(part["part"], f"{part['sentences']:,}", *(f"{bleu:.2f}" for bleu in part["bleu"]))
    return "\n".join(lines) + "\n"


def row(*cells: str) -> list[str]:
    """A row of a table in Markdown."""
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"]
