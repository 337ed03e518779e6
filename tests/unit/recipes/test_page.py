"""recipes.reporting.page, hidden_characters, charts: what templates insert is safe; ticks of axes."""

import re
from itertools import pairwise

import pytest
from jinja2 import UndefinedError

from recipes.reporting import charts, hidden_characters, page

TEMPLATES = sorted((page.HERE / "templates").rglob("*.jinja"))


def test_hidden_characters_are_shown() -> None:
    assert hidden_characters.in_boxes("a\ud800\u2066\u00ad\u200d<") == "a" + "".join(
        f'<span class="code">{code}</span>' for code in ("U+D800", "U+2066", "U+00AD")
    ) + "\u200d&lt;"  # fmt: skip
    assert hidden_characters.in_brackets('"\u202e\u200d') == '"[U+202E]\u200d'


@pytest.mark.parametrize("value", ['"\u202e', "\u2066<b>", ["\x07"], {"\u2028": 1}])
def test_what_a_template_inserts_is_safe_by_default(value: object) -> None:
    """Without any filter, in an attribute as in an element."""
    html = page.environment().from_string('<a title="{{ value }}">{{ value }}</a>').render(value=value)
    assert not re.search("[\u202a-\u202e\u2028\u2066-\u2069\x07]", html)
    assert len(re.findall("[<>]", html)) == 4
    assert html.count('"') == 2


def test_quotes_and_code_points_in_attributes() -> None:
    assert page.environment().from_string("{{ value }}").render(value='"\u202e') == "&#34;[U+202E]"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_neither_skip_escaping_nor_leave_attributes_unquoted(template) -> None:
    text = template.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|Markup", text)
    assert not re.search(r"<[^>]*=\{\{", text)
    # The boxes of hidden characters are elements: in attributes, titles and charts they would be wrong.
    assert not re.search(r'="[^"]*\|\s*boxes[^"]*"|<(title|option)[^>]*>[^<]*\|\s*boxes', text)
    assert template.name != "charts.html.jinja" or "boxes" not in text


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        page.environment().from_string("{{ absent }}").render()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.3, 11.9), (5, 5), (0, 0), (-3, 4e6), (1e-7, 2e-7)])
def test_ticks_enclose_their_range(low: float, high: float) -> None:
    values = charts.tick_values(low, high)
    assert values[0] <= low <= high <= values[-1]
    assert 2 <= len(values) <= 12
    steps = [b - a for a, b in pairwise(values)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert steps[0] > 0


def test_lines_and_bars_stand_on_their_axes() -> None:
    """A value that is a tick stands where the tick is; bars stand on 0."""
    chart = charts.line_chart([charts.Series(9, [(10, 4), (0, 0)])], title="", x_label="", y_label="")
    (line,) = chart.lines
    assert (line.colour, line.shape) == (1, 1)
    ticks = {tick.label: tick.place for tick in chart.x_ticks}, {tick.label: tick.place for tick in chart.y_ticks}
    assert line.places == [(ticks[0]["0"], ticks[1]["0"]), (ticks[0]["10"], ticks[1]["4"])]
    bars = charts.bar_chart(["a", "b"], [[0, 40], [20, 10]], title="", x_label="", y_label="").bars
    heights = [bar.height for bar in bars]
    assert heights == pytest.approx([0, heights[1], heights[1] / 2, heights[1] / 4])
    assert {bar.y + bar.height for bar in bars} == {charts.BOTTOM}
    assert all(a.x + a.width < b.x for a, b in pairwise(bars))
