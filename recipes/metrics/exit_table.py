"""Evaluations of models with exits side by side: quality and cost against the mean exit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.metrics import results, systems
from recipes.metrics.markdown import row, rule
from recipes.metrics.results import TranslationScores
from recipes.metrics.systems import System
from thoth_core.errors import UserError

COLUMNS = (
    "evaluation",
    "exits",
    "mean exit",
    "tokens by exit",
    "MFLOP per token",
    "BLEU",
    "seconds",
    "tokens per second",
)
WITHOUT_EXITS = "models of this depth"


@dataclass(frozen=True)
class Line:
    """An evaluation in the table; a model without exits has no counts and no operations."""

    label: str
    series: str  # the line of the picture that it is a point of
    exits: str
    mean_exit: float
    tokens_by_exit: str
    mflops: float | None
    bleu: float
    seconds: float
    tokens_per_second: float

    def cells(self) -> list[str]:
        """The cells of the columns in COLUMNS."""
        return [
            self.label,
            self.exits,
            f"{self.mean_exit:,.2f}",
            self.tokens_by_exit,
            "" if self.mflops is None else f"{self.mflops:,.2f}",
            f"{self.bleu:,.2f}",
            f"{self.seconds:,.1f}",
            f"{self.tokens_per_second:,.0f}",
        ]


def open_system(path: Path) -> System:
    """The evaluation in `path`, with the depth of its decoder; else a UserError."""
    system = systems.open_system(path)
    if system.scores.blocks is None:
        raise UserError(
            f"{system.folder / results.NAME}: field blocks, the depth of the decoder, is null; {results.AGAIN}"
        )
    return system


def check_comparable(opened: Sequence[System]) -> None:
    """Raise a UserError if evaluations differ in what scores and times depend on."""
    systems.check_comparable(opened)
    first = opened[0]
    for system in opened[1:]:
        own, expected = _conditions(system.scores), _conditions(first.scores)
        for name, value in own.items():
            if value != expected[name]:
                raise UserError(
                    f"{system.folder}: {name} is {value}, that of {first.folder} is {expected[name]}; "
                    "times and scores of evaluations that differ in it cannot be compared"
                )


def _conditions(scores: TranslationScores) -> dict[str, Any]:
    """What evaluations must have in common, beside sentences and scoring, for their times to be in one table."""
    return {**scores.search.model_dump(), "device": scores.device, "threads": scores.threads}


def lines(opened: Sequence[System], labels: Sequence[str]) -> list[Line]:
    """A line for each system, by series and mean exit."""
    unsorted = [
        _line(system.scores, label, name)
        for system, label, name in zip(opened, labels, series(opened, labels), strict=True)
    ]
    return sorted(unsorted, key=lambda line: (line.series, line.mean_exit))


def series(opened: Sequence[System], labels: Sequence[str]) -> list[str]:
    """The line of the picture that each evaluation is a point of: a policy of one model, or models without exits."""
    keys: list[tuple[str, tuple[Any, ...]]] = []
    for scores in (system.scores for system in opened):
        model = (scores.model, scores.checkpoint, scores.updates, scores.training_command)
        keys.append((WITHOUT_EXITS, ()) if scores.exits is None else (scores.exits.policy, model))
    names = {}
    for policy, model in keys:
        own = [Path(label).parts for label, key in zip(labels, keys, strict=True) if key == (policy, model)]
        common = "/".join(part for part in own[0] if all(part in parts for parts in own))
        is_only_model = len({key for key in keys if key[0] == policy}) == 1
        names[policy, model] = policy if is_only_model else f"{policy}: {common or '/'.join(own[0])}"
    return [names[key] for key in keys]


def _line(scores: TranslationScores, label: str, series: str) -> Line:
    common: dict[str, Any] = dict(
        label=label,
        series=series,
        bleu=scores.bleu.score,
        seconds=scores.seconds,
        tokens_per_second=scores.tokens_per_second,
    )
    exits = scores.exits
    if exits is None:
        assert scores.blocks is not None
        depth: dict[str, Any] = {"exits": f"{scores.blocks} blocks", "mean_exit": float(scores.blocks)}
        return Line(**common, **depth, tokens_by_exit="", mflops=None)
    settings = ", ".join(
        f"{name.removeprefix('exit_')} {value}" for name, value in scores.overrides.items() if name != "exit_policy"
    )
    return Line(
        **common,
        exits=exits.policy + (f" ({settings})" if settings else ""),
        mean_exit=exits.mean,
        tokens_by_exit=" ".join(str(exits.tokens.get(str(n), 0)) for n in range(1, exits.blocks + 1)),
        mflops=exits.mflops_per_token,
    )


def table(rows: Sequence[Line], scores: TranslationScores) -> str:
    """The lines in Markdown; `scores` are those of one of the systems."""
    threads = f"{scores.threads} thread{'s' * (scores.threads != 1)}"
    below = (
        f"{scores.corpus}, {scores.split} ({scores.sentences:,} sentences), beam {scores.beam}, "
        f"{scores.device}, {threads}; BLEU `{scores.bleu.signature}`"
    )
    return "\n".join([row(*COLUMNS), rule(len(COLUMNS)), *(row(*line.cells()) for line in rows), "", below]) + "\n"
