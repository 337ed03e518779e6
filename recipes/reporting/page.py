"""The report's page: one HTML file that needs no network, rendered from systems and the figures of their comparison."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recipes.metrics.comparison import Comparison
from recipes.reporting import charts, hidden_characters
from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.alignments import alignments_section
from recipes.reporting.sections.breakdown import documents_section, length_section
from recipes.reporting.sections.cost import cost_section
from recipes.reporting.sections.exits import exits_section
from recipes.reporting.sections.provenance import provenance_section
from recipes.reporting.sections.scores import scores_section
from recipes.reporting.sections.sentences import sentences_section
from recipes.reporting.sections.slots import slots_section
from recipes.reporting.sections.training import training_section

HERE = Path(__file__).resolve().parent


def environment() -> Environment:
    """The templates' environment. All that they insert is escaped, and its hidden characters become code points.

    By default these are in brackets, which is right in attributes and titles; the filter `boxes` is for the content of
    elements.
    """
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["boxes"] = hidden_characters.in_boxes
    names = ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM", "COLOURS")
    templates.globals.update({name: getattr(charts, name) for name in names})
    return templates


def _finalize(value: object) -> object:
    return value if hasattr(value, "__html__") else hidden_characters.in_brackets(str(value))


def render(
    systems: Sequence[SystemData],
    comparison: Comparison,
    order: Sequence[int],
    *,
    command: str,
    progress: Callable[[], object],
) -> str:
    """The whole page.

    Args:
        systems: the evaluations; the first is the baseline.
        comparison: their comparison; one system alone has no tests.
        order: indices of the sentences to show, the first of them first.
        command: the call that makes the page.
        progress: called after each sentence.
    """
    exits = exits_section(systems, order)
    every = [
        scores_section(systems, comparison),
        training_section(systems),
        length_section(comparison),
        documents_section(comparison),
        cost_section(systems),
        exits,
        alignments_section(systems),
        slots_section(systems),
        sentences_section(systems, order, progress),
        provenance_section(systems, command),
    ]
    templates = environment()
    style = _static("report.css")
    if exits is not None:
        style += templates.get_template("exit_colours.css.jinja").render(blocks=exits.blocks)
    script = _static("report.js")
    return templates.get_template("page.html.jinja").render(
        title=systems[0].system.test_set,
        systems=systems,
        sentences=len(systems[0].system.sentences),
        sections=[section for section in every if section is not None],
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
    )


def _static(name: str) -> str:
    return (HERE / "static" / name).read_text(encoding="utf-8")


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy under which the page may use this style and script, and pictures in itself."""

    def digest(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
