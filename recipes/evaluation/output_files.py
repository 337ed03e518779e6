"""The files of an evaluation beside scores.json and scores.txt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.evaluation.alignments import alignment
from recipes.evaluation.translator import Translation, Translator
from recipes.metrics import decoding_traces
from recipes.metrics.decoding_traces import SentenceAlignment, SentenceExits
from recipes.reporting.plots.alignment import plot_alignment
from recipes.reporting.plots.exits import plot_exits
from recipes.reporting.plots.slots import plot_slots
from recipes.reporting.plots.training import plot_training
from recipes.training.run import Run


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def sentences_for_pictures(sources: Sequence[str], hypotheses: Sequence[str], count: int) -> list[int]:
    """Indices of sentences of readable length, spread over the test set; the same ones on every call."""

    def is_readable(index: int, low: int, high: int) -> bool:
        return all(low <= len(text.split()) <= high for text in (sources[index], hypotheses[index]))

    for low, high in ((5, 14), (2, 25), (1, 60)):
        readable = [i for i in range(len(sources)) if is_readable(i, low, high)]
        if len(readable) >= count:
            break
    if len(readable) <= count:
        return readable
    return [readable[k * len(readable) // count] for k in range(count)]


def write_exits(
    folder: Path,
    translator: Translator,
    translations: Sequence[Translation],
    exits: Sequence[list[int]],
    pictured: Sequence[int],
) -> None:
    """exits.jsonl, and exits.png with the sentences `pictured`."""
    lines = [
        SentenceExits(tokens=[*translation.tokens, "</s>"], exits=row).line()
        for translation, row in zip(translations, exits, strict=True)
    ]
    write_lines(folder / decoding_traces.EXITS_FILE, lines)
    if pictured:
        rows = [([*translator.target.marked(translations[i].tokens), "</s>"], exits[i]) for i in pictured]
        blocks = translator.model.decoder.num_layers
        plot_exits(rows, blocks, folder / "exits.png", "exit of each token from the decoder")


def write_alignments(
    folder: Path,
    translator: Translator,
    sources: Sequence[str],
    translations: Sequence[Translation],
    pictured: Sequence[int],
) -> None:
    """alignment-1.png, ... and alignments.jsonl of the sentences `pictured`, for a model that has alignments."""
    lines: list[str] = []
    for index in pictured:
        aligned = alignment(translator, sources[index], translations[index])
        if aligned is None:
            continue
        path = folder / f"alignment-{len(lines) + 1}.png"
        plot_alignment(aligned.source, aligned.target, aligned.weights, path, f"sentence {index + 1}")
        weights = [[round(float(weight), 4) for weight in row] for row in aligned.weights]
        trace = SentenceAlignment(number=index + 1, source=aligned.source, target=aligned.target, weights=weights)
        lines.append(trace.line())
    if lines:
        write_lines(folder / decoding_traces.ALIGNMENTS_FILE, lines)
    elif pictured:
        print("note: no alignment pictures: this model has no attention weights over the source")


def draw_slots(folder: Path, usages: Mapping[str, Any]) -> None:
    """slots-d2.png for the memory of decoder layer 2, and so on."""
    for layer, usage in usages.items():
        plot_slots(usage.picture().cpu().numpy(), folder / f"slots-{layer}.png", f"slots read in layer {layer}")


def draw_training(folder: Path, run: Run) -> None:
    """training.png, if the training reported losses."""
    plot_training(run.figures(), folder / "training.png", f"{run.folder.name} on {run.folder.parent.name}")
