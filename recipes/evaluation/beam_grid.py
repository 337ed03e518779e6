"""The search for a beam and a length penalty: BLEU on the validation set of all pairs of them."""

from collections.abc import Sequence

from tqdm import tqdm

from recipes.evaluation import beam_tuning, facts, model_loading
from recipes.evaluation.beam_tuning import Tuning
from recipes.evaluation.selection import Selection
from recipes.evaluation.translator import translator_of
from recipes.metrics import quality
from recipes.metrics.results import TuningRow
from thoth_core.errors import UserError


def tune(selection: Selection, *, beams: Sequence[int], lenpens: Sequence[float], command: Sequence[str]) -> Tuning:
    """The pair of the highest BLEU. Each beam is decoded once: the length penalty only ranks the hypotheses.

    Raises:
        UserError: a checkpoint is damaged, or the model is a language model.
    """
    loaded = model_loading.load_checkpoints(selection)
    if loaded[0].is_language_model:
        name = selection.model.name
        raise UserError(f"{name} is a language model, which translates nothing: there is no search to tune")
    models = [facts.model_facts(checkpoint) for checkpoint in loaded]
    translator = translator_of(selection, loaded)
    language, lowercase = selection.corpus.target, translator.target.lowercase
    metric = {"bleu": quality.metrics_for(language, lowercase=lowercase)["bleu"]}
    sources, references = selection.sources, selection.references
    rows: list[TuningRow] = []
    signature = ""
    print(f"Translating {len(sources):,} sentences of {beam_tuning.SPLIT}, once per beam", flush=True)
    for beam in sorted(set(beams)):
        with tqdm(total=len(sources), unit=" sentences", smoothing=0.1, desc=f"beam {beam}") as bar:
            candidates = translator.candidates(
                sources, selection.search.model_copy(update={"beam": beam}), progress=bar
            )
        for lenpen in sorted(set(lenpens)):
            texts = translator.best_texts(candidates, lenpen)
            quality.check_lines(texts, references)
            bleu = quality.corpus_scores(metric, texts, references)["bleu"]
            signature = bleu.signature
            rows.append(TuningRow(beam=beam, lenpen=lenpen, bleu=bleu.score))
    chosen = beam_tuning.best(rows)
    return Tuning(
        **facts.facts(selection, models[0], command),
        beam=chosen.beam,
        lenpen=chosen.lenpen,
        bleu=chosen.bleu,
        bleu_signature=signature,
        rows=rows,
        search=selection.search,
        parameters_of_models=[model.parameters_sha256 or "" for model in models],
        evaluate=f"{selection.request.command('recipes/evaluate.sh')} --tuned",
        ensemble=models[1:],
    )
