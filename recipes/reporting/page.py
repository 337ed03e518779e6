"""The report's page: one HTML file that needs no network, from systems and the figures of their comparison."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.metrics import quality
from recipes.metrics import systems as comparing
from recipes.reporting import charts, markup, training_records
from recipes.reporting.artifacts import Shown
from recipes.reporting.markup import figure, plain, table, text

HERE = Path(__file__).resolve().parent
A_PAGE = 25  # sentences shown at a time; without scripts all are there, and that many are printed
EXITS_SHOWN = 10  # sentences whose sub-words are coloured by their exits

Section = tuple[str, str, str]  # id, title, HTML


def page(
    systems: Sequence[Shown],
    comparison: Mapping[str, Any],
    order: Sequence[int],
    *,
    command: str,
    progress: Callable[[], object],
) -> str:
    """The whole page. `comparison` is as in comparison.json; of one system, without `tests`.

    `order` are the indices of the sentences to show, the first of them first; `progress` is called after each.
    """
    scores = systems[0].scores
    title = f"{scores['corpus']}, {scores['split']}"
    found: list[Section] = [
        ("scores", "Scores", scores_section(systems, comparison)),
        ("training", "Training", training_section(systems)),
        ("length", "BLEU by length", parts_section(systems, comparison["by_length"], comparison["length_unit"])),
        ("talks", "BLEU by talk", talks_section(systems, comparison["by_talk"])),
        ("cost", "Speed and cost", cost_section(systems)),
        ("exits", "Exits", exits_section(systems, order)),
        ("alignments", "Alignments", alignments_section(systems)),
        ("slots", "Slots of memories", slots_section(systems)),
        ("sentences", "Sentences", sentences_section(systems, order, progress)),
        ("made", "How it was measured", made_section(systems, comparison, command)),
    ]
    sections = [section for section in found if section[2]]
    nav = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{heading}</h2>\n{content}</section>'
        for name, heading, content in sections
    )
    style = (HERE / "static" / "report.css").read_text(encoding="utf-8") + exit_colours(systems)
    script = (HERE / "static" / "report.js").read_text(encoding="utf-8")
    count = f"{len(systems)} system{'s' * (len(systems) != 1)}, {len(systems[0].system.sentences):,} sentences"
    # The policy comes before what it judges: nothing is loaded, and no other style or script is heeded.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(style, script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{plain(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#scores">To the scores</a>
<header><h1>{text(title)}</h1><p>{count}</p><nav aria-label="Sections">{nav}</nav></header>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which the page may use this style and script, and pictures it holds itself."""

    def of(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {of(style)}; script-src {of(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def names(systems: Sequence[Shown]) -> list[str]:
    """Labels with the colour and the number of each system."""
    return [f'<span class="name s{n % charts.COLOURS}">{n + 1}</span> {text(s.label)}' for n, s in enumerate(systems)]


def keys(systems: Sequence[Shown]) -> list[str]:
    return [str(number) for number in range(len(systems))]


def legend(systems: Sequence[Shown]) -> str:
    return f'<p class="legend">{" ".join(f"<span>{name}</span>" for name in names(systems))}</p>'


def scores_section(systems: Sequence[Shown], comparison: Mapping[str, Any]) -> str:
    tests = comparison.get("tests", {})
    metrics = quality.present(systems[0].scores)
    head, rows = ["system"], []
    for metric in metrics:
        head += [quality.NAMES[metric], *(["95% interval", "p"] if metric in tests else [])]
    for number, (name, system) in enumerate(zip(names(systems), systems, strict=True)):
        cells = [name]
        for metric in metrics:
            cells.append(figure(system.scores[metric]["score"], of=f"{metric}.score"))
            if metric in tests:
                found = tests[metric]["systems"][number]
                interval = f"{figure(found['mean'], of=f'test.{metric}.mean')} ± "
                cells.append(interval + figure(found["ci"], of=f"test.{metric}.ci"))
                p_value = found["p_value"]
                cells.append("baseline" if p_value is None else figure(p_value, "{:.4f}", of=f"test.{metric}.p_value"))
        rows.append(cells)
    first = systems[0].system.signatures
    below = "".join(
        f"<li>{quality.title(name)}: <code>{text(first[name])}</code>"
        + (f"; test <code>{text(tests[name]['signature'])}</code>" if tests else "")
        + "</li>"
        for name in metrics
    )
    meaning = f"<p>{text(comparison['meaning'])}</p>" if tests else ""
    return (
        table(
            "Scores" + (" and paired tests against the first system" if tests else " of the test set"),
            head,
            rows,
            keys=keys(systems),
        )
        + meaning
        + f"<ul>{below}</ul>"
    )


def training_section(systems: Sequence[Shown]) -> str:
    """Two charts of the loss and its validations as a table; empty without records."""
    drawn = []
    for key, scale, label in (("updates", 1.0, "updates"), ("seconds", 1 / 60, "minutes of training")):
        series = [
            charts.Series(number, points, faint)
            for number, system in enumerate(systems)
            for records, faint in ((system.train, True), (system.valid, False))
            if (points := training_records.points(records, key, scale))
        ]
        if series:
            title = f"Loss against {label}"
            drawn.append(charts.lines(series, title=title, x_label=label, y_label="loss (bits a sub-word)"))
    if not drawn:
        return ""
    rows = [
        [name, *(figure(r.get(key), form, scale=scale) for key, form, scale in
                 (("updates", "{:,}", 1), ("seconds", "{:,.1f}", 1 / 60))), figure(training_records.loss(r), "{:.3f}")]
        for name, system in zip(names(systems), systems, strict=True)
        for r in system.valid
    ]  # fmt: skip
    found = table("Validations", ["system", "updates", "minutes", "loss (bits a sub-word)"], rows)
    unknown = [text(system.label) for system in systems if not system.train and not system.valid]
    note = f"<p>No records of training beside the evaluation of {', '.join(unknown)}.</p>" if unknown else ""
    for system in systems:
        known = [*system.train, *system.valid]
        if lost := sum(training_records.loss(record) is None for record in known):
            note += f"<p>Left out, since their loss is not finite: {lost:,} of {len(known):,} records of "
            note += f"{text(system.label)}.</p>"
        if known and system.scores.get("ensemble"):
            note += f"<p>Of the ensemble {text(system.label)}: training of its first model, "
            note += f"{text(system.scores['model'])}, alone.</p>"
    told = "<p>Lines with marks: validation; thin lines: training.</p>"
    charted = f'<div class="charts">{"".join(drawn)}</div>'
    return f"{legend(systems)}{charted}{told}{note}<details><summary>As a table</summary>{found}</details>"


def parts_table(systems: Sequence[Shown], heading: str, rows: Sequence[Mapping[str, Any]], of: str) -> str:
    cells = [
        [text(row["part"]), figure(row["sentences"], "{:,}"),
         *(figure(bleu, of=f"{of}.{place}.{number}") for number, bleu in enumerate(row["bleu"]))]
        for place, row in enumerate(rows)
    ]  # fmt: skip
    return table(f"BLEU by {heading}", [heading, "sentences", *names(systems)], cells)


def parts_section(systems: Sequence[Shown], rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    chart = charts.bars(
        [row["part"] for row in rows],
        [row["bleu"] for row in rows],
        title="BLEU by the length of the source",
        x_label=f"{unit} of the source",
        y_label="BLEU",
    )
    found = parts_table(systems, f"{unit} of the source", rows, "by_length")
    told = (
        "<p>Each part is scored as a text of its own: the scores of the parts do not average to that of the whole.</p>"
    )
    return f'{legend(systems)}<div class="charts">{chart}</div>{found}{told}'


def talks_section(systems: Sequence[Shown], rows: Sequence[Mapping[str, Any]]) -> str:
    return parts_table(systems, "talk", rows, "by_talk") if rows else ""


def cost_section(systems: Sequence[Shown]) -> str:
    rows = []
    for name, system in zip(names(systems), systems, strict=True):
        scores, told = system.scores, system.scores.get("exits", {})
        alone = not scores.get("ensemble")
        updates = [
            figure(model.get("updates"), "{:,}", of=f"ensemble.{place - 1}.updates" if place else "updates")
            for place, model in enumerate(quality.models(scores))
        ]
        minutes = figure(
            quality.checkpoint_seconds(scores), "{:,.1f}", of="checkpoint_seconds" if alone else "", scale=1 / 60
        )
        rows.append(
            [
                name,
                figure(scores["parameters"], "{:,}", of="parameters"),
                " + ".join(updates) if all(updates) else "",
                minutes,
                figure(scores["seconds"], "{:,.1f}", of="seconds"),
                figure(scores["tokens_per_second"], "{:,.0f}", of="tokens_per_second"),
                figure(told.get("mean"), of="exits.mean"),
                figure(told.get("mflops_per_token"), of="exits.mflops_per_token"),
                text(decoded_with(system)),
                f"{text(str(scores['device']))}, {figure(scores['threads'], '{:,}', of='threads')} "
                f"thread{'s' * (scores['threads'] != 1)}",
                figure(scores["search"]["max-tokens"], "{:,}", of="search.max-tokens"),
            ]
        )
    head = ["system", "parameters", "updates", "minutes of training to the checkpoint", "seconds of decoding",
            "sub-words a second", "mean exit", "MFLOP a token", "decoded with", "on", "sub-words a batch"]  # fmt: skip
    told = "<p>Times can be compared where the machine, its load, the threads and the batches were the same.</p>"
    if any(system.scores.get("ensemble") for system in systems):
        told += "<p>Parameters and minutes of an ensemble are those of all its models together.</p>"
    for name, system in zip(names(systems), systems, strict=True):
        if cut := system.scores.get("truncated"):
            told += f"<p>{name}: {figure(cut, '{:,}', of='truncated')} sentence{'s' * (cut != 1)} "
            told += "whose source was cut to the model's length.</p>"
    return table("Parameters, training and decoding", head, rows, keys=keys(systems)) + told


def decoded_with(system: Shown) -> str:
    """Search, checkpoint, and the model's options that were changed."""
    overrides = [f"{name} {value}" for name, value in system.scores.get("overrides", {}).items()]
    return "; ".join([comparing.search(system.system), *overrides])


def exit_colours(systems: Sequence[Shown]) -> str:
    """Style of the classes e1, e2, ...: from light to dark, the deeper the darker."""
    blocks = max((s.scores["exits"]["blocks"] for s in systems if s.exits is not None), default=0)
    rules = []
    for exit in range(1, blocks + 1):
        share = (exit - 1) / max(blocks - 1, 1)
        ink = "#fff" if share > 0.4 else "#000"
        rules.append(f".e{exit}{{background:hsl({50 + 220 * share:.0f} 65% {88 - 60 * share:.0f}%);color:{ink}}}")
    return "".join(rules)


def exits_section(systems: Sequence[Shown], order: Sequence[int]) -> str:
    chosen = [(name, system) for name, system in zip(names(systems), systems, strict=True) if system.exits is not None]
    if not chosen:
        return ""
    blocks = max(system.scores["exits"]["blocks"] for _, system in chosen)
    rows = []
    for name, system in chosen:
        told = system.scores["exits"]
        counts = (figure(told["tokens"].get(str(n)), "{:,}", of=f"exits.tokens.{n}") for n in range(1, blocks + 1))
        full = figure(told["mflops_per_token_full_depth"], of="exits.mflops_per_token_full_depth")
        rows.append([name, text(told["policy"]), figure(told["mean"], of="exits.mean"), full, *counts])
    exits = range(1, blocks + 1)
    head = ["system", "policy", "mean", "MFLOP at full depth", *(f'<span class="e{n}">exit {n}</span>' for n in exits)]
    numbers = [str(number) for number, system in enumerate(systems) if system.exits is not None]
    found = [table("Sub-words by exit", head, rows, keys=numbers)]
    found.append("<p>Sub-words coloured by the block they left the decoder after, which stands behind each.</p>")
    for index in order[:EXITS_SHOWN]:
        found.append(f'<h3>Sentence <a href="#s{index + 1}">{index + 1}</a></h3><dl class="texts">')
        for name, system in chosen:
            assert system.exits is not None
            told = system.exits[index]
            found.append(f"<dt>{name}</dt><dd>{coloured(system, told.tokens, told.exits)}</dd>")
        found.append("</dl>")
    return "\n".join(found)


def coloured(system: Shown, pieces: Sequence[str], exits: Sequence[int]) -> str:
    """Sub-words with their exits; ▁ begins a word."""
    found = []
    for piece, exit in zip(pieces, exits, strict=True):
        gap = " " if piece.startswith("▁") or piece == "</s>" else "<wbr>"
        found.append(
            f'{gap}<span class="e{exit}">{text(piece.replace("▁", " ").strip()) or "▁"}<sub>{exit}</sub></span>'
        )
    code = markup.language(str(system.scores.get("target_language", "")))
    return f'<p class="pieces" {code}>{"".join(found).strip()}</p>'


def alignments_section(systems: Sequence[Shown]) -> str:
    found = []
    for name, system in zip(names(systems), systems, strict=True):
        maps = [
            markup.heat_map(f"Sentence {told.number}", told.source, told.target, told.weights)
            for told in system.alignments
        ]
        if maps:
            found.append(f'<h3>{name}</h3><div class="maps">{"".join(maps)}</div>')
    told = "<p>Rows are words written, columns words of the source; weights in per cent.</p>"
    return told + "\n".join(found) if found else ""


def slots_section(systems: Sequence[Shown]) -> str:
    rows, numbers, images = [], [], []
    for number, (name, system) in enumerate(zip(names(systems), systems, strict=True)):
        for layer, usage in system.scores.get("slot_usage", {}).items():
            used = figure(usage["used"], "{:.1f}%", of=f"slot_usage.{layer}.used", scale=100)
            rows.append([name, text(layer), used, figure(usage["kl"], of=f"slot_usage.{layer}.kl")])
            numbers.append(str(number))
            told = f"{system.label}, layer {layer}: how often each head reads each part of the memory"
            images.append(f'<img src="{system.slots[layer]}" alt="{plain(told)}">')
    if not rows:
        return ""
    head = ["system", "layer", "slots read", "divergence from uniform use (nats)"]
    return table("Use of slots", head, rows, keys=numbers) + f'<div class="charts">{"".join(images)}</div>'


def sentences_section(systems: Sequence[Shown], order: Sequence[int], progress: Callable[[], object]) -> str:
    """An article a sentence, the first of `order` first, which the page's script leafs through."""
    options = ["<option value=difference>where systems differ most</option><option value=number>by number</option>"
               "<option value=length>longest source first</option>"]  # fmt: skip
    options += [f"<option value={n}>worst chrF2 of {plain(s.label)} first</option>" for n, s in enumerate(systems)]
    count = len(systems[0].system.sentences)
    what = "on which systems differ most in chrF2" if len(systems) > 1 else "of the lowest chrF2"
    told = f"All {count:,} sentences" if len(order) == count else f"The {len(order):,} of {count:,} sentences {what}"
    found = [
        f"<p>{told}. Marked: what a translation has and the reference, in this order, has not. BLEU and chrF2 of a "
        "sentence are there to find sentences; they do not average to the scores of the text.</p>",
        f'<form id="leaf" data-page="{A_PAGE}" hidden><label>Search <input type="search" id="search"></label> '
        f'<label>Order <select id="order">{"".join(options)}</select></label> '
        '<button type="button" id="back">Back</button> <button type="button" id="on">On</button> '
        '<output id="where" aria-live="polite"></output>'
        "<p>Keys: <kbd>j</kbd> next sentence, <kbd>k</kbd> the one before, <kbd>n</kbd> and <kbd>p</kbd> leaf, "
        "<kbd>/</kbd> search.</p></form>",
        '<div id="list">',
    ]
    for index in order:
        found.append(sentence(systems, index))
        progress()
    return "\n".join([*found, "</div>"])


def sentence(systems: Sequence[Shown], index: int) -> str:
    first, scores = systems[0].system.sentences[index], systems[0].scores
    target = str(scores.get("target_language", ""))
    source_code, target_code = markup.language(str(scores["source_language"])), markup.language(target)
    spaced = comparing.spaced(target)
    lowercase = "case:lc" in scores["bleu"]["signature"]
    mine = [system.system.sentences[index] for system in systems]
    length = comparing.length(first.source, scores["source_language"])
    data = {"length": length, "chrf": json.dumps([round(one.chrf, 4) for one in mine])}
    kept = " ".join(f'data-{name}="{value}"' for name, value in data.items())
    talk = f" <small>talk {text(first.talk)}</small>" if first.talk is not None else ""
    rows = [
        f"<dt>source</dt><dd {source_code}>{text(first.source)}</dd>",
        f"<dt>reference</dt><dd {target_code}>{text(first.reference)}</dd>",
    ]
    for name, one in zip(names(systems), mine, strict=True):
        told = markup.marked(one.hypothesis, one.reference, spaced=spaced, lowercase=lowercase)
        bleu, chrf = figure(one.bleu, "{:.1f}", of="bleu"), figure(one.chrf, "{:.1f}", of="chrf")
        rows.append(f"<dt>{name} <small>BLEU {bleu}, chrF2 {chrf}</small></dt><dd {target_code}>{told}</dd>")
    return (
        f'<article class="sentence" id="s{index + 1}" tabindex="-1" data-number="{index + 1}" {kept}>'
        f'<h3>Sentence {index + 1}{talk}</h3><dl class="texts">{"".join(rows)}</dl></article>'
    )


def made_section(systems: Sequence[Shown], comparison: Mapping[str, Any], command: str) -> str:
    found = [f"<p>This page: <code>{text(command)}</code></p>"]
    for name, system in zip(names(systems), systems, strict=True):
        training = system.scores.get("training_command")
        trained = f"<p>Trained by <code>{text(str(training))}</code></p>" if training else ""
        told = text(quality.table(system.scores))
        found.append(f"<details><summary>{name}</summary><pre>{told}</pre>{trained}</details>")
    return "\n".join(found)
