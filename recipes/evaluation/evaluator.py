"""What an evaluation measures: a translator by its translations, a language model by its perplexity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.data.prepared_corpus import Corpus
from recipes.evaluation import model_loading, perplexity
from recipes.evaluation import translator as decoding
from recipes.metrics import decoding_traces, quality, sentences
from recipes.metrics.decoding_traces import SentenceAlignment, SentenceExits
from recipes.metrics.results import LanguageModelScores, TranslationScores
from recipes.metrics.sentences import Sentence
from recipes.reporting.plots.alignment import plot_alignment
from recipes.reporting.plots.exits import plot_exits
from recipes.reporting.plots.slots import plot_slots


@dataclass(frozen=True)
class Place:
    """What is evaluated where."""

    corpus: Corpus
    split: str
    checkpoint: Path  # for messages
    user_dir: Path | None
    device: str
    overrides: Mapping[str, Any]  # of the model's options
    others: Sequence[tuple[dict[str, Any], Path, Path | None]] = ()  # of an ensemble, see decoding.load_translator

    def translator(self, state: dict[str, Any]) -> decoding.Translator:
        """Of the checkpoint's `state` and the others."""
        return decoding.load_translator(
            state,
            path=self.checkpoint,
            corpus=self.corpus,
            user_dir=self.user_dir,
            device=self.device,
            overrides=self.overrides,
            others=self.others,
        )


@dataclass(frozen=True)
class Found:
    """What an evaluation found: its own part of scores.json, and how to show it."""

    scores: dict[str, Any]
    usages: Mapping[str, Any]  # of the slots of memories, by layer
    kind: type[TranslationScores] | type[LanguageModelScores]
    write: Callable[[Path], None]  # the files beside scores.json, into a folder
    last_line: str


def translate(
    state: dict[str, Any],
    place: Place,
    sources: Sequence[str],
    references: Sequence[str],
    talks: Sequence[str] | None,
    search: Mapping[str, Any],
    count: int,
) -> Found:
    """Translate `sources` and score the translations; draw the alignments of `count` sentences.

    `talks` names the talk of each sentence, where there are talks.
    """
    translator = place.translator(state)
    print(f"Translating {len(sources):,} sentences of {place.split} with beam {search['beam']}", flush=True)
    with tqdm(total=len(sources), unit=" sentences", smoothing=0.1) as bar:
        translations, statistics = translator.translate(sources, search, progress=bar)
    if statistics.truncated:
        print(f"note: {statistics.truncated:,} sentences were cut to the model's {translator.max_source:,} sub-words")
    hypotheses = [translation.text for translation in translations]
    usages = translator.slot_usage(sources, translations, search["max-tokens"])
    exits = translator.exits(sources, translations, search["max-tokens"])
    print("Scoring with sacreBLEU", flush=True)
    scored = quality.score(hypotheses, references, place.corpus.target, lowercase=translator.target.lowercase)
    tokens = [
        translator.target.scored(t.pieces, reference) for t, reference in zip(translations, references, strict=True)
    ]
    if None not in tokens:
        scored["tokenised_bleu"] = quality.tokenised_bleu(*zip(*tokens, strict=True))
    told = told_sentences(sources, references, talks, translations, tokens, scored)
    scores: dict[str, Any] = {
        **scored,
        "seconds": round(statistics.seconds, 3),
        "tokens": statistics.tokens,
        "tokens_per_second": round(statistics.tokens / max(statistics.seconds, 1e-9), 1),
        "truncated": statistics.truncated,
        "parameters": translator.parameters,
        "blocks": getattr(translator.model.decoder, "num_layers", None),
        "beam": search["beam"],
        "lenpen": search["lenpen"],
        "search": search,
        **slot_figures(usages),
        **translator.exit_figures(sources, exits),
    }

    def write(folder: Path) -> None:
        write_lines(folder / "hypotheses.txt", hypotheses)
        write_lines(folder / "references.txt", references)
        (folder / sentences.NAME).write_text(sentences.text(told), encoding="utf-8")
        if exits is not None:
            pairs = zip(translations, exits, strict=True)
            write_lines(
                folder / decoding_traces.EXITS_FILE,
                [SentenceExits(tokens=[*t.pieces, "</s>"], exits=e).line() for t, e in pairs],
            )
        draw_alignments(folder, translator, sources, translations, count)
        if exits is not None and count:
            chosen = chosen_for_pictures(sources, hypotheses, count)
            shown = [([*translator.target.marked(translations[i].pieces), "</s>"], exits[i]) for i in chosen]
            blocks = translator.model.decoder.num_layers
            plot_exits(shown, blocks, folder / "exits.png", "exit of each token from the decoder")

    return Found(scores, usages, TranslationScores, write, f"BLEU = {scores['bleu'].score:.2f}")


def told_sentences(
    sources: Sequence[str],
    references: Sequence[str],
    talks: Sequence[str] | None,
    translations: Sequence[decoding.Translation],
    tokens: Sequence[tuple[str, str] | None],
    scores: Mapping[str, Any],
) -> list[Sentence]:
    """The lines of sentences.jsonl, scored with the settings of `scores`. `tokens` are what BLEU of tokens compares."""
    signatures = {name: scores[name].signature for name in quality.METRICS}
    scored = sentences.sentence_scores([t.text for t in translations], references, signatures)
    of_talks: Sequence[str | None] = talks if talks is not None else [None] * len(sources)
    given = zip(sources, references, of_talks, translations, tokens, scored, strict=True)
    return [
        Sentence(
            number=number,
            source=source,
            reference=reference,
            hypothesis=t.text,
            hypothesis_tokens=pair and pair[0],
            reference_tokens=pair and pair[1],
            document=talk,
            score=t.score,
            tokens=t.pieces,
            bleu=bleu,
            chrf=chrf,
        )
        for number, (source, reference, talk, t, pair, (bleu, chrf)) in enumerate(given, 1)
    ]


def foretell(state: dict[str, Any], place: Place, references: Sequence[str], max_tokens: int) -> Found:
    """Score a language model by its perplexity of `references`."""
    model, task = model_loading.load_model(
        state, path=place.checkpoint, corpus=place.corpus, user_dir=place.user_dir, overrides=place.overrides
    )
    print(f"Reading {len(references):,} sentences of {place.split}", flush=True)
    with tqdm(unit=" sub-words", smoothing=0.1) as bar:
        found, usages = perplexity.measure(
            model, task, place.split, max_tokens=max_tokens, device=place.device, progress=bar
        )
    scores: dict[str, Any] = {
        **perplexity.scores(found, references),
        "parameters": sum(p.numel() for p in model.parameters()),
        **slot_figures(usages),
    }
    last_line = f"perplexity = {scores['perplexity']['word']:.2f}"
    return Found(scores, usages, LanguageModelScores, lambda folder: None, last_line)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def slot_figures(usages: Mapping[str, Any]) -> dict[str, Any]:
    """The part of scores.json about the slots of memories; none without memories."""
    return {"slot_usage": {layer: usage.figures() for layer, usage in usages.items()}} if usages else {}


def chosen_for_pictures(sources: Sequence[str], texts: Sequence[str], count: int) -> list[int]:
    """Sentences of readable length, spread over the test set; the same ones on every call."""

    def readable(index: int, low: int, high: int) -> bool:
        return all(low <= len(text.split()) <= high for text in (sources[index], texts[index]))

    for low, high in ((5, 14), (2, 25), (1, 60)):
        found = [i for i in range(len(sources)) if readable(i, low, high)]
        if len(found) >= count:
            break
    if len(found) <= count:
        return found
    return [found[k * len(found) // count] for k in range(count)]


def draw_alignments(
    folder: Path, translator: Any, sources: Sequence[str], translations: Sequence[Any], count: int
) -> None:
    """alignment-1.png and on for a model that says what it looked at, and alignments.jsonl with what is drawn.

    Its lines have the sentence's number, source and target words, and weights[t][s] of target word t on source word s.
    """
    lines: list[str] = []
    for index in chosen_for_pictures(sources, [t.text for t in translations], count):
        found = translator.alignment(sources[index], translations[index])
        if found is None:
            continue
        path = folder / f"alignment-{len(lines) + 1}.png"
        plot_alignment(found.source, found.target, found.weights, path, f"sentence {index + 1}")
        weights = [[round(float(weight), 4) for weight in row] for row in found.weights]
        trace = SentenceAlignment(number=index + 1, source=found.source, target=found.target, weights=weights)
        lines.append(trace.line())
    if lines:
        write_lines(folder / decoding_traces.ALIGNMENTS_FILE, lines)
    elif count:
        print("note: no alignment pictures: this model does not say what it looked at")


def draw_slots(folder: Path, usages: Mapping[str, Any]) -> None:
    """slots-d2.png for the memory of decoder layer 2, and so on."""
    for layer, usage in usages.items():
        plot_slots(usage.picture().cpu().numpy(), folder / f"slots-{layer}.png", f"slots read in layer {layer}")
