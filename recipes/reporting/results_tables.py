"""Write the tables of docs/RESULTS.md from results/*.json: `make results`.

The page has a pair of comments for each table, `<!-- results: NAME -->` and `<!-- end of results -->`, where NAME is a
file of results/ without `.json`, or `summary`. What stands between them is replaced; all else is written by hand.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.metrics.markdown import row, rule
from recipes.reporting import published_results
from recipes.reporting.published_results import Difference, Measurement, Published, PublishedSystem, Table, Translations
from recipes.storage import disk
from recipes.storage.provenance import ROOT
from thoth_core.errors import UserError

FOLDER = ROOT / "results"
PAGE = ROOT / "docs" / "RESULTS.md"
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", flags=re.S)

Format = Callable[[Any], str]


def decimals(count: int) -> Format:
    """A formatter of numbers with `count` decimals and commas between thousands."""
    return lambda value: f"{value:,.{count}f}"


# Heading, field of `PublishedSystem`, format; a column is there if one system has the field.
COLUMNS: tuple[tuple[str, str, Format], ...] = (
    ("parameters", "parameters", decimals(0)),
    ("updates", "updates", decimals(0)),
    ("epochs", "epochs", lambda value: f"{value:g}"),
    ("minutes of training", "training_minutes", decimals(1)),
    ("validation loss (bits)", "validation_loss", decimals(3)),
    ("mean exit", "mean_exit", decimals(2)),
    ("MFLOP per token in the decoder", "decoder_mflop", decimals(2)),
    ("BLEU", "bleu", decimals(2)),
    ("chrF2", "chrf", decimals(2)),
    ("TER", "ter", decimals(2)),
    ("training, tokens per second", "training_speed", decimals(0)),
    ("decoding, tokens per second", "decoding_speed", decimals(0)),
    ("decoding, seconds", "decoding_seconds", decimals(1)),
    ("slots read", "slots_read", lambda value: f"{value:.1f}%"),
)


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join([row(*columns), rule(len(columns)), *(row(*cells) for cells in rows)]) + "\n"


def difference_text(difference: Difference) -> str:
    """The difference in BLEU with its sign."""
    return f"{difference.bleu:+.2f}".replace("-", "−")


def p_text(difference: Difference) -> str:
    """The p-value, if it is known."""
    return "not recorded" if difference.p is None else f"{difference.p:g}"


def interval_text(difference: Difference) -> str:
    """The 95% interval, if it is known."""
    if difference.interval is None:
        return "not recorded"
    low, high = difference.interval
    return f"{low:+.2f} to {high:+.2f}".replace("-", "−")


def system_name(system: PublishedSystem) -> str:
    """The name as code, with the setting after a comma if there is one."""
    return f"`{system.name}`" + (f", {system.setting}" if system.setting else "")


def system_rows(systems: list[PublishedSystem]) -> tuple[list[str], list[list[str]]]:
    """The headings of the columns that some system has, and a row for each system."""
    present = [column for column in COLUMNS if any(getattr(system, column[1]) is not None for system in systems)]
    with_settings = any(system.setting for system in systems)
    compared = any(system.difference for system in systems)

    def cells_of(system: PublishedSystem) -> list[str]:
        cells = [f"`{system.name}`", *([system.setting] if with_settings else [])]
        for _, field, text in present:
            value = getattr(system, field)
            cells.append("" if value is None else text(value))
        if compared:
            difference = system.difference
            cells += ["", ""] if difference is None else [difference_text(difference), p_text(difference)]
        return cells

    headings = ["model", *(["setting"] if with_settings else []), *(heading for heading, _, _ in present)]
    return [*headings, *(["difference in BLEU", "p"] if compared else [])], [cells_of(system) for system in systems]


def code(lines: list[str]) -> str:
    """A block of code in Markdown."""
    return "".join(f"    {line}\n" if line else "\n" for line in lines)


def listed(commits: list[str]) -> str:
    """The commits after the word "commit" or "commits"."""
    return f"commit{'s' if len(commits) > 1 else ''} " + ", ".join(commits)


def translations_block(result: Translations) -> str:
    """The block of the page for scores of translations."""
    seeds = sorted({system.seeds for system in result.systems})
    runs = "one run (one seed) of each model" if seeds == [1] else f"{' or '.join(map(str, seeds))} seeds of each model"
    baselines = {system.difference.baseline for system in result.systems if system.difference}
    names = [system_name(system) for system in result.systems if system.label in baselines]
    compared = f" Baseline of the differences: {'; '.join(names)}." if names else ""
    signatures = ", ".join(f"{metric} `{signature}`" for metric, signature in result.signatures.items())
    return (
        f"{code(result.commands)}\n"
        f"Test set: {result.test_set}, {result.sentences:,} sentences; beam {result.beam}; {runs}.{compared}\n\n"
        f"{markdown(*system_rows(result.systems))}\n"
        f"Trained with {listed(result.commits.trained)}; evaluated with {listed(result.commits.evaluated)}; "
        f"recorded on {result.recorded}. {result.machine}.\n"
        f"Signatures: {signatures}.\n"
    )


def table_block(table: Table) -> str:
    """A table under its caption, if it has one."""

    def cell(value: str | int | float) -> str:
        if isinstance(value, str):
            return value
        return f"{value:,}" if isinstance(value, int) or table.decimals is None else f"{value:,.{table.decimals}f}"

    caption = f"{table.caption}\n\n" if table.caption else ""
    return caption + markdown(table.columns, [[cell(value) for value in row] for row in table.rows])


def measurement_block(result: Measurement) -> str:
    """The block of the page for any other measurement."""
    tables = "\n".join(table_block(table) for table in result.tables)
    return (
        f"{code(result.commands)}\n{tables}\n"
        f"Measured with {listed(result.commits)}; recorded on {result.recorded}. {result.machine}.\n"
    )


def anchor(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def summary_rows(results: Mapping[str, Published]) -> Iterator[list[str]]:
    """The cells of the summary: a row for each system with a cost."""
    for result in results.values():
        if not isinstance(result, Translations):
            continue
        by_label = {system.label: system for system in result.systems}
        section = f"[{result.corpus}](#{anchor(result.title)})"
        for system in result.systems:
            if system.cost is None:
                continue
            comparison = ["none", "", "", ""]
            if difference := system.difference:
                baseline = by_label[difference.baseline]
                comparison = [
                    f"{system_name(baseline)}: {baseline.bleu:.2f}",
                    difference_text(difference),
                    interval_text(difference),
                    p_text(difference),
                ]
            yield [system_name(system), section, f"{system.bleu:.2f}", *comparison, str(system.seeds), system.cost]


def summary(results: Mapping[str, Published]) -> str:
    """The table of models beside their baselines."""
    columns = ["model", "corpus", "BLEU", "baseline", "difference", "its 95% interval", "p", "seeds", "cost"]
    return markdown(columns, list(summary_rows(results)))


def read_results(folder: Path = FOLDER) -> dict[str, Published]:
    """File name without `.json` → its figures.

    Raises:
        UserError: a file breaks the schema.
    """
    return {path.stem: published_results.read(path) for path in sorted(folder.glob("*.json"))}


def render(page: str, results: Mapping[str, Published]) -> str:
    """The text of the page with every block written from `results`.

    Raises:
        UserError: the page names a file that is missing, or a file is not named on the page.
    """
    named = [name for _, name, _ in BLOCK.findall(page)]
    wrong = {"summary", *results}.symmetric_difference(named)
    if wrong or len(named) != len(set(named)):
        raise UserError(
            f"docs/RESULTS.md must have one block for summary and for each file of results/; wrong: {sorted(wrong)}"
        )

    def block(name: str) -> str:
        if name == "summary":
            return summary(results)
        result = results[name]
        return translations_block(result) if isinstance(result, Translations) else measurement_block(result)

    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2])}{match[3]}", page)


def main() -> None:
    """Write the page."""
    disk.write_atomically(PAGE, render(PAGE.read_text(encoding="utf-8"), read_results()))


if __name__ == "__main__":
    main()
