"""An evaluation: a translation model is scored by its translations, a language model by its perplexity."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.evaluation import beam_tuning, facts, forced_decoding, model_loading, output_files, perplexity
from recipes.evaluation.beam_tuning import Tuning
from recipes.evaluation.model_loading import LoadedCheckpoint
from recipes.evaluation.selection import Selection
from recipes.evaluation.translator import Translation, translator_of
from recipes.metrics import quality, results, score_table, sentences
from recipes.metrics.results import LanguageModelScores, Score, TranslationScores
from recipes.metrics.sentences import Sentence
from recipes.storage import folders


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation and the files that go with them."""

    scores: TranslationScores | LanguageModelScores
    usages: Mapping[str, Any]  # a `memory_layers.usage.SlotUsage` by layer
    write_files: Callable[[Path], None]  # into a folder
    last_line: str  # of the command's output


def evaluate(
    selection: Selection, *, output: Path, pictures: int, tuning: Tuning | None, command: Sequence[str]
) -> None:
    """Evaluate the selected models and write the results into the folder `output`.

    Args:
        pictures: number of sentences to draw.
        tuning: the beam and the length penalty to take instead of the selection's.
        command: the command's words, for the results.

    Raises:
        UserError: a checkpoint is damaged, or the tuning is of other checkpoints.
    """
    loaded = model_loading.load_checkpoints(selection)
    models = [facts.model_facts(checkpoint) for checkpoint in loaded]
    if tuning is not None:
        beam_tuning.check_models(tuning, models, selection)
        search = selection.search.model_copy(update={"beam": tuning.beam, "lenpen": tuning.lenpen})
        selection = dataclasses.replace(selection, search=search)
    known = facts.facts(selection, models[0], command)
    if loaded[0].is_language_model:
        evaluation = _evaluate_language_model(selection, loaded[0], known)
    else:
        known["ensemble"] = models[1:]
        known["tuned"] = None if tuning is None else beam_tuning.tuned_search(tuning, selection)
        evaluation = _evaluate_translations(selection, loaded, known, pictures)
    table = score_table.table(evaluation.scores)
    with folders.replaced(output) as building:
        output_files.draw_training(building, selection.model.run)
        output_files.draw_slots(building, evaluation.usages)
        evaluation.write_files(building)
        (building / "scores.txt").write_text(table, encoding="utf-8")
        evaluation.scores.write(building / results.NAME)
    print()
    print(table)
    print(f"Written to {output}")
    print(evaluation.last_line)


def _evaluate_translations(
    selection: Selection, loaded: Sequence[LoadedCheckpoint], known: Mapping[str, Any], pictures: int
) -> Evaluation:
    """Translate the text and score the translations. `known` are the fields of the scores that are known already."""
    translator = translator_of(selection, loaded)
    sources, references, search = selection.sources, selection.references, selection.search
    print(f"Translating {len(sources):,} sentences of {selection.split} with beam {search.beam}", flush=True)
    with tqdm(total=len(sources), unit=" sentences", smoothing=0.1) as bar:
        translations, statistics = translator.translate(sources, search, progress=bar)
    if statistics.truncated:
        print(f"note: {statistics.truncated:,} sentences were cut to the model's {translator.max_source:,} tokens")
    hypotheses = [translation.text for translation in translations]
    usages = forced_decoding.slot_usage(translator, sources, translations, search.max_tokens)
    exits = forced_decoding.exits(translator, sources, translations, search.max_tokens)
    print("Scoring with sacreBLEU", flush=True)
    scored = quality.score(hypotheses, references, selection.corpus.target, lowercase=translator.target.lowercase)
    moses = [translator.target.scored(t.tokens, r) for t, r in zip(translations, references, strict=True)]
    if None not in moses:
        scored["tokenised_bleu"] = quality.tokenised_bleu(*zip(*moses, strict=True))
    lines = _sentences(selection, translations, moses, scored)
    scores = TranslationScores.model_validate(
        {
            **known,
            **scored,
            "seconds": round(statistics.seconds, 3),
            "tokens": statistics.tokens,
            "tokens_per_second": round(statistics.tokens / max(statistics.seconds, 1e-9), 1),
            "truncated": statistics.truncated,
            "parameters": translator.parameters,
            "blocks": getattr(translator.model.decoder, "num_layers", None),
            "beam": search.beam,
            "lenpen": search.lenpen,
            "search": search,
            "slot_usage": {layer: usage.figures() for layer, usage in usages.items()},
            "exits": None if exits is None else forced_decoding.exit_figures(translator, sources, exits),
        }
    )

    def write_files(folder: Path) -> None:
        output_files.write_lines(folder / "hypotheses.txt", hypotheses)
        output_files.write_lines(folder / "references.txt", references)
        (folder / sentences.NAME).write_text(sentences.text(lines), encoding="utf-8")
        pictured = output_files.sentences_for_pictures(sources, hypotheses, pictures) if pictures else []
        if exits is not None:
            output_files.write_exits(folder, translator, translations, exits, pictured)
        output_files.write_alignments(folder, translator, sources, translations, pictured)

    return Evaluation(scores, usages, write_files, f"BLEU = {scores.bleu.score:.2f}")


def _sentences(
    selection: Selection,
    translations: Sequence[Translation],
    moses: Sequence[tuple[str, str] | None],
    scores: Mapping[str, Score],
) -> list[Sentence]:
    """The content of sentences.jsonl, scored with the settings of `scores`.

    `moses` are the tokens of hypothesis and reference that BLEU of tokens compares, where it is measured.
    """
    signatures = {name: scores[name].signature for name in quality.METRICS}
    texts = [translation.text for translation in translations]
    sentence_scores = sentences.sentence_scores(texts, selection.references, signatures)
    return [
        Sentence(
            number=index + 1,
            source=selection.sources[index],
            reference=selection.references[index],
            hypothesis=translation.text,
            hypothesis_tokens=pair and pair[0],
            reference_tokens=pair and pair[1],
            document=None if selection.documents is None else selection.documents[index],
            score=translation.score,
            tokens=translation.tokens,
            bleu=bleu,
            chrf=chrf,
        )
        for index, (translation, pair, (bleu, chrf)) in enumerate(
            zip(translations, moses, sentence_scores, strict=True)
        )
    ]


def _evaluate_language_model(selection: Selection, loaded: LoadedCheckpoint, known: Mapping[str, Any]) -> Evaluation:
    """Score a language model by its perplexity of the references."""
    model, task = model_loading.load_model(
        loaded.state,
        path=loaded.path,
        corpus=selection.corpus,
        user_dir=selection.model.plugin,
        overrides=selection.overrides,
    )
    print(f"Reading {len(selection.references):,} sentences of {selection.split}", flush=True)
    with tqdm(unit=" tokens", smoothing=0.1) as bar:
        cost = perplexity.measure(
            model,
            task,
            selection.split,
            max_tokens=selection.search.max_tokens,
            device=model_loading.device_of(selection),
            progress=bar,
        )
    scores = LanguageModelScores.model_validate(
        {
            **known,
            **perplexity.figures(cost, selection.references),
            "parameters": sum(p.numel() for p in model.parameters()),
            "slot_usage": {layer: usage.figures() for layer, usage in cost.usages.items()},
        }
    )
    return Evaluation(scores, cost.usages, lambda folder: None, f"perplexity = {scores.perplexity.word:.2f}")
