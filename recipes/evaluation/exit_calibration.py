"""The calibration of a model with exits: a threshold for a goal, and calibration-*.json, which keeps it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import JsonValue

from depth_adaptive.calibration import Resplits
from recipes.config.search import SearchOptions
from recipes.evaluation import facts, model_loading, threshold_search
from recipes.evaluation.calibration_request import CalibrationRequest
from recipes.evaluation.exit_trials import Threshold, Trial, Trials, option_value
from recipes.evaluation.model_loading import LoadedCheckpoint
from recipes.evaluation.selection import Selection
from recipes.evaluation.translator import Translator, translator_of
from recipes.metrics.results import Facts
from recipes.storage.records import DocumentedRecord
from thoth_core.errors import UserError


class TrialRow(DocumentedRecord):
    """The effects of one threshold; null is what was not measured."""

    threshold: float | list[float] | None
    """the threshold, or one for each block; null is full depth"""
    forced_mean_exit: float | None
    """mean exit along full depth's translations"""
    disagreement: float | None
    """mean share of a sentence's tokens at which the most likely one is not full depth's"""
    mean_exit: float | None
    """mean exit of the translations"""
    tokens_by_exit: dict[str, int] | None
    """number of tokens of the translations by their exit"""
    mflops_per_token: float | None
    """operations of the decoder per token in millions"""
    bleu: float | None
    """BLEU of the translations"""
    seconds: float | None
    """seconds of decoding"""


class ResplitCounts(DocumentedRecord):
    """How often a threshold that was chosen on a random half exceeded the tolerated disagreement."""

    count: int
    """number of halves"""
    on_all: int
    """times that it was exceeded on all sentences"""
    on_other_half: int
    """times that it was exceeded on the other half"""
    full_depth: int
    """times that no threshold was accepted"""


class Calibration(Facts):
    """The content of calibration-*.json."""

    wanted: dict[str, float]
    """the goal and its value"""
    policy: str
    """policy whose threshold was chosen"""
    threshold: float | list[float] | None
    """the chosen threshold, or one for each block; null is full depth"""
    temperature: JsonValue
    """temperature of the exits, as the option exit_temperature"""
    steps: int
    """thresholds are multiples of 1 / this"""
    rows: list[TrialRow]
    """the trials: full depth, then thresholds from the highest down"""
    bleu_signature: str
    """sacreBLEU's signature of BLEU"""
    search: SearchOptions
    """options of the search"""
    evaluate: str
    """command that evaluates the model with the chosen threshold"""
    level: float | None = None
    """for disagreement: the probability at most that it is exceeded"""
    guarantee: str | None = None
    """for disagreement: what is guaranteed"""
    resplits: ResplitCounts | None = None
    """for disagreement with --resplits: the check on random halves"""


def check_model(loaded: LoadedCheckpoint, translator: Translator, policy: str) -> None:
    """Raise a UserError if `policy` has no threshold to choose in this model."""
    decoder: Any = getattr(translator.model, "decoder", None)
    remedy = "calibrate a model of depth_adaptive with two decoder blocks or more"
    if not hasattr(decoder, "exit_options"):
        raise UserError(f"{loaded.path}: the model has no exits; {remedy}")
    if decoder.num_layers < 2:
        raise UserError(f"{loaded.path}: the decoder has one block, so one exit; {remedy}")
    halting = decoder.exit_options.halting
    if policy == "halting" and halting != "geometric":
        raise UserError(
            f"--policy halting: {loaded.path} was trained with --halting {halting}, which has no threshold; it must be "
            "geometric, or take --policy confidence"
        )


def load(selection: Selection, loaded: LoadedCheckpoint, policy: str) -> Translator:
    """The translator of a model with exits; else a UserError."""
    if loaded.is_language_model:
        raise UserError(f"{loaded.path}: a language model, which has no exits; calibrate a model of depth_adaptive")
    translator = translator_of(selection, [loaded])
    check_model(loaded, translator, policy)
    return translator


def calibrate(selection: Selection, request: CalibrationRequest, *, command: Sequence[str]) -> None:
    """Choose a threshold, write it into the folder of the run and print the trials."""
    output = selection.model.run.folder / f"{request.output_name(selection.request)}.json"
    (loaded,) = model_loading.load_checkpoints(selection)
    translator = load(selection, loaded, request.policy)
    exits = translator.model.decoder.num_layers
    if request.goal == "mean_exit" and not 1 <= request.value <= exits:
        raise UserError(f"--mean-exit must be from 1 to {exits}, the decoder's blocks, but is {request.value:g}")
    print(f"Translating {len(selection.sources):,} sentences of {selection.split}, first at full depth", flush=True)
    trials = Trials(
        translator,
        selection.sources,
        selection.references,
        selection.search,
        policy=request.policy,
        language=selection.corpus.target,
    )
    initial_temperature = trials.options.exit_temperature
    threshold, resplits, notes = _choose(trials, request, selection)
    if threshold is not None:
        trials.decoded(threshold)
        trials.forced(threshold)
    overrides = ["exit_policy=full"]
    if threshold is not None:
        overrides = [f"exit_policy={request.policy}", f"exit_threshold={option_value(threshold)}"]
        if trials.options.exit_temperature != initial_temperature:
            overrides.append(f"exit_temperature={trials.options.exit_temperature}")
    assert trials.full.bleu is not None
    has_guarantee = request.goal == "disagreement"
    calibration = Calibration(
        **facts.facts(selection, facts.model_facts(loaded), command),
        wanted={request.goal: request.value},
        policy=request.policy,
        threshold=_json(threshold),
        temperature=trials.options.exit_temperature,
        steps=request.steps,
        rows=[_row(trial) for trial in trials.rows()],
        bleu_signature=trials.full.bleu.signature,
        search=selection.search,
        evaluate=selection.request.command("recipes/evaluate.sh", overrides),
        level=request.level if has_guarantee else None,
        guarantee=notes[0] if has_guarantee else None,
        resplits=None if resplits is None else ResplitCounts(**asdict(resplits)),
    )
    table = trials.table(threshold)
    calibration.write(output)
    print()
    print(table)
    for note in notes:
        print(note)
    print(f"Written to {output}")
    print(calibration.evaluate)


def _choose(
    trials: Trials, request: CalibrationRequest, selection: Selection
) -> tuple[Threshold | None, Resplits | None, list[str]]:
    """The threshold, the check on random halves, and notes for people; the first one is the guarantee, if any."""
    steps, resplits, notes = request.steps, None, []
    dial = threshold_search.same_for_all_blocks(steps)
    if request.per_exit:
        dial = threshold_search.one_per_block(trials, steps)
    threshold: Threshold | None
    if request.goal == "mean_exit":
        threshold = threshold_search.for_mean_exit(trials, request.value, steps, dial)
    elif request.goal == "bleu_loss":
        threshold = threshold_search.for_bleu_loss(trials, request.value, steps, dial)
    else:
        threshold, resplits = threshold_search.for_disagreement(
            trials, tolerated=request.value, level=request.level, steps=steps, resplits=request.resplits
        )
        notes.append(guarantee(request, len(selection.sources), selection.search.beam))
    if resplits is not None:
        notes.append(resplits_text(resplits, request, len(selection.sources)))
    if threshold is None:
        highest = option_value(dial(steps - 1))
        notes.append(f"Even the highest threshold, {highest}, is too low: full depth is chosen.")
    return threshold, resplits, notes


def _json(threshold: Threshold | None) -> float | list[float] | None:
    return list(threshold) if isinstance(threshold, tuple) else threshold


def _row(trial: Trial) -> TrialRow:
    return TrialRow(
        threshold=_json(trial.threshold),
        forced_mean_exit=trial.forced_exit,
        disagreement=trial.disagreement,
        mean_exit=trial.exit,
        tokens_by_exit=trial.tokens,
        mflops_per_token=trial.mflops,
        bleu=None if trial.bleu is None else trial.bleu.score,
        seconds=trial.seconds,
    )


def guarantee(request: CalibrationRequest, sentences: int, beam: int) -> str:
    """What --disagreement guarantees, for people."""
    return (
        f"Guaranteed, except for a probability of {request.level:g} over the draw of these {sentences:,} sentences:\n"
        "the mean share of a sentence's tokens at which the most likely one is not full depth's is at most "
        f"{request.value:g}.\n"
        "It holds for sentences drawn independently from the same source, along full depth's own translation\n"
        f"(beam {beam}). It says nothing of the tokens after one that differs, nor of BLEU."
    )


def resplits_text(resplits: Resplits, request: CalibrationRequest, sentences: int) -> str:
    """What choosing on random halves gave, for people."""
    level, half = request.level, sentences // 2
    lines = [
        f"Chosen on {resplits.count:,} random halves of {half:,} sentences (full depth on {resplits.full_depth:,}), "
        f"{request.value:g} is exceeded"
    ]
    for where, count in ((f"all {sentences:,} sentences", resplits.on_all), ("the other half", resplits.on_other_half)):
        share = count / resplits.count
        error = (share * (1 - share) / resplits.count) ** 0.5
        lines.append(f"  on {where:<22} {count:,} times: {share:.1%}, standard error {error:.1%}")
    bound = resplits.bound(level)
    kept = "kept" if resplits.on_all / resplits.count <= bound else "BROKEN"
    lines += [
        f"  guaranteed: at most {level:.1%}, with two standard errors {bound:.1%}: {kept}.",
        "The guarantee is for all sentences, from which a half is drawn; the mean of the other half also depends on "
        "the draw.",
    ]
    return "\n".join(lines)
