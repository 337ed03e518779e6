"""Section "Scores": each metric of each system, with the paired tests against the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.metrics import quality
from recipes.metrics.comparison import Comparison
from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.section import Figure, Section, figure


@dataclass(frozen=True)
class ScoreCell:
    """A score of one system. A test adds the mean and half the width of the interval, and p (None: the baseline)."""

    score: Figure
    mean: Figure | None = None
    half_width: Figure | None = None
    p_value: Figure | None = None


@dataclass(frozen=True)
class MetricScores:
    """A metric with the scores of all systems."""

    title: str  # for the head of a column
    name: str
    signature: str
    test_signature: str
    scores: list[ScoreCell]  # one of each system


@dataclass(frozen=True, kw_only=True)
class ScoresSection(Section):
    id: str = "scores"
    title: str = "Scores"
    template: str = "scores.html.jinja"
    metrics: list[MetricScores]
    tested: bool
    meaning: str


def scores_section(systems: Sequence[SystemData], comparison: Comparison) -> ScoresSection:
    tests = comparison.tests
    metrics = []
    for metric, signature in systems[0].scores.signatures.items():
        scores = []
        for system in systems:
            score = figure(system.scores.by_metric[metric].score, origin=f"{metric}.score")
            if not tests:
                scores.append(ScoreCell(score))
                continue
            test = tests[metric].systems[system.number]
            mean, half_width, p_value = (
                figure(getattr(test, key), form, origin=f"test.{metric}.{key}")
                for key, form in (("mean", "{:,.2f}"), ("ci", "{:,.2f}"), ("p_value", "{:.4f}"))
            )
            scores.append(ScoreCell(score, mean, half_width, p_value))
        test_signature = tests[metric].signature if tests else ""
        metrics.append(MetricScores(quality.heading(metric), quality.TITLES[metric], signature, test_signature, scores))
    return ScoresSection(metrics=metrics, tested=bool(tests), meaning=comparison.meaning)
