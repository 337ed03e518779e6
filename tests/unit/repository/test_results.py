"""docs/RESULTS.md has the figures of results/*.json, and those follow their schema."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.reporting import published_results, results_tables
from recipes.reporting.published_results import Translations
from tests.support.paths import ROOT
from thoth_core.errors import UserError

FILES = sorted((ROOT / "results").glob("*.json"))


def test_the_page_has_the_figures_of_the_files() -> None:
    page = results_tables.PAGE.read_text(encoding="utf-8")
    assert results_tables.render(page, results_tables.read_results()) == page, "make results writes the tables again"


def test_the_headings_of_the_page_are_the_titles_of_the_files() -> None:
    page = results_tables.PAGE.read_text(encoding="utf-8")
    for name, result in results_tables.read_results().items():
        section = page.split(f"<!-- results: {name} -->")[0].rpartition("\n## ")[2]
        assert section.startswith(f"{result.title}\n"), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_are_in_their_written_form(path: Path) -> None:
    """A changed figure is one changed line."""
    text = path.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_a_changed_figure_changes_the_page(tmp_path: Path) -> None:
    page = results_tables.PAGE.read_text(encoding="utf-8")
    for path in FILES:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "quickstart.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"bleu": 97.87', '"bleu": 97.88'), encoding="utf-8")
    changed = results_tables.render(page, results_tables.read_results(tmp_path))
    assert changed != page
    assert changed.replace("97.88", "97.87") == page


def test_the_page_names_every_file() -> None:
    page = results_tables.PAGE.read_text(encoding="utf-8")
    results = results_tables.read_results()
    with pytest.raises(UserError, match=r"one block .*\['quickstart'\]"):
        results_tables.render(page.replace("<!-- results: quickstart -->", ""), results)
    with pytest.raises(UserError, match=r"one block .*\['quickstart'\]"):
        results_tables.render(page, {name: result for name, result in results.items() if name != "quickstart"})


def test_the_readme_has_the_figures_of_the_summary() -> None:
    """Scores, differences and p of the models, as the files have them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    compared = 0
    for result in results_tables.read_results().values():
        systems = result.systems if isinstance(result, Translations) else []
        scores = {system.label: system.bleu for system in systems}
        for system in systems:
            if system.cost is None or system.difference is None:
                continue
            compared += 1
            (row,) = (line for line in readme.splitlines() if f" {system.name}` |" in line and "seed" in line)
            p = "p not recorded" if system.difference.p is None else f"p = {system.difference.p:g}"
            for figure in (
                f"{system.bleu:.2f}",
                f"{scores[system.difference.baseline]:.2f}",
                results_tables.difference_text(system.difference),
                f"{system.seeds} seed",
                p,
            ):
                assert figure in row, (system.name, figure)
    assert compared == 3


def record(**changes: Any) -> dict[str, Any]:
    systems = [
        {"name": "a", "bleu": 30.0},
        {"name": "b", "setting": "beam 1", "bleu": 30.25, "difference": {"baseline": "a", "bleu": 0.25}},
    ]
    values = {
        "kind": "translations",
        "title": "T",
        "corpus": "c",
        "test_set": "t",
        "sentences": 10,
        "beam": 5,
        "commands": ["make"],
        "commits": {"trained": ["abcdef0"], "evaluated": ["abcdef0"]},
        "recorded": "2026-01-31",
        "machine": "m",
        "signatures": {"BLEU": "s"},
        "systems": systems,
    }
    return values | changes


def test_differences_intervals_and_p_are_written_as_they_are_known(tmp_path: Path) -> None:
    result = published_results.ADAPTER.validate_json(json.dumps(record()))
    assert isinstance(result, Translations)
    assert "| `b` | beam 1 | 30.25 | +0.25 | not recorded |" in results_tables.translations_block(result)
    worse = {"baseline": "a", "bleu": -0.5, "interval": [-0.9, -0.1], "p": 0.01}
    systems = [
        {"name": "a", "bleu": 30.0},
        {"name": "b", "bleu": 29.5, "difference": worse, "seeds": 3, "cost": "half the time"},
    ]
    result = published_results.ADAPTER.validate_json(json.dumps(record(systems=systems)))
    row = "| `b` | [c](#t) | 29.50 | `a`: 30.00 | −0.50 | −0.90 to −0.10 | 0.01 | 3 | half the time |"
    assert row in results_tables.summary({"x": result})


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"beam": "5"}, "field translations.beam: input should be a valid integer"),
        ({"recorded": "31.1.2026"}, "field translations.recorded: "),
        ({"colour": "red"}, "unknown field translations.colour"),
        ({"kind": "opinion"}, "opinion"),
        ({"systems": [{"name": "a", "bleu": 1.0}, {"name": "a", "bleu": 2.0}]}, "the same name and setting"),
        ({"systems": [{"name": "a", "bleu": 1.0, "difference": {"baseline": "b", "bleu": 1.0}}]}, "called 'b'"),
        ({"systems": [{"name": "a", "bleu": 1.0, "difference": {"baseline": "a", "bleu": 1.0}}]}, "is 0.0, not 1.0"),
    ),
)
def test_what_breaks_the_schema_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record(**changes)), encoding="utf-8")
    with pytest.raises(UserError) as error:
        published_results.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
