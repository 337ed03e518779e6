"""Paired tests of systems on the same sentences, by sacreBLEU."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from recipes.metrics import quality
from recipes.metrics.systems import System
from recipes.storage.records import Record

Test = Literal["bs", "ar"]  # paired bootstrap resampling, approximate randomisation
SAMPLES: dict[Test, int] = {"bs": 1_000, "ar": 10_000}  # sacreBLEU's defaults
SEED = 12345  # sacreBLEU's default


class SystemTest(Record):
    """The test of one system against the first, by one metric."""

    score: float
    mean: float  # the mean of the scores of resamples of the sentences
    ci: float  # half the width of the 95% interval around `mean`
    p_value: float | None  # None for the first system


class MetricTest(Record):
    """The tests of all systems by one metric."""

    signature: str
    systems: list[SystemTest]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make sacreBLEU, which reads its seed from the environment, use `seed`."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


def paired_tests(
    systems: Sequence[System],
    *,
    test: Test,
    samples: int,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, MetricTest]:
    """sacreBLEU's paired test of every system against the first, by the names in quality.TITLES.

    The interval of a system is that of `samples` resamples, with "ar" of 1,000 of them. The p-value is 1 where the
    texts are those of the first system: sacreBLEU, which counts differences above 0, gives them the smallest p-value.

    Args:
        samples: resamples ("bs") or trials ("ar").
        report: called with a line of progress before each metric.
    """
    from sacrebleu.significance import PairedTest

    tests: dict[str, MetricTest] = {}
    for name, metric in quality.metrics_of(systems[0].scores.signatures).items():
        report(f"Testing {quality.TITLES[name]}: {samples:,} {'resamples' if test == 'bs' else 'trials'}")
        named: list[tuple[str, Sequence[str]]] = [(system.name, system.texts(name)[0]) for system in systems]
        with _seeded(seed):
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
        tests[name] = MetricTest(
            signature=str(signatures[title]),
            systems=[
                SystemTest(
                    score=float(row.score),
                    mean=float(row.mean),
                    ci=float(row.ci),
                    p_value=None if row.p_value is None else 1.0 if texts == named[0][1] else float(row.p_value),
                )
                for row, (_, texts) in zip(rows, named, strict=True)
            ],
        )
    return tests


def explanation(test: Test, samples: int) -> str:
    """What p and the interval mean, for people."""
    kind = "paired bootstrap resampling" if test == "bs" else "paired approximate randomisation"
    count = f"{samples:,} {'resamples' if test == 'bs' else 'trials'}"
    return (
        f"p: {kind} ({count}) against system 1, of no difference; not corrected for the number of systems. "
        f"95% interval: around the mean of {samples if test == 'bs' else SAMPLES['bs']:,} resamples of the sentences."
    )
