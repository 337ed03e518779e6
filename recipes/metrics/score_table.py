"""scores.txt: the results of an evaluation as aligned text for people."""

from recipes.metrics import quality
from recipes.metrics.results import LanguageModelScores, Scores, TranslationScores


def table(scores: TranslationScores | LanguageModelScores) -> str:
    """The scores, then what they were measured with."""
    if isinstance(scores, TranslationScores):
        models, lines = " + ".join(model.model for model in scores.models), _translation_lines(scores)
        settings = _training_of(scores) | _search_of(scores) | _decoder_of(scores)
    else:
        models, lines = scores.model, _language_model_lines(scores)
        settings = _training(scores) | {"reading": _speed(scores)}
    head = f"{scores.corpus}, {scores.split}: {scores.sentences:,} sentences, model {models}"
    rows = {"parameters": f"{scores.parameters:,}"} | settings | _provenance(scores)
    return "\n".join([head, "", *lines, "", *(f"{name:<12} {value}" for name, value in rows.items())]) + "\n"


def _translation_lines(scores: TranslationScores) -> list[str]:
    return [
        f"{quality.heading(name):<22} {score.score:6.2f}   {score.signature}"
        for name, score in scores.by_metric.items()
    ]


def _language_model_lines(scores: LanguageModelScores) -> list[str]:
    return [
        f"{'perplexity per word':<22} {scores.perplexity.word:8.2f}   {scores.words:,} words",
        f"{'perplexity per token':<22} {scores.perplexity.subword:8.2f}   {scores.tokens:,} tokens",
        f"{'bits per character':<22} {scores.bits_per_character:8.3f}   {scores.characters:,} characters",
    ]


def _updates(updates: int | None) -> str:
    return "unknown" if updates is None else f"{updates:,}"


def _speed(scores: Scores) -> str:
    return f"{scores.seconds:.1f} s, {scores.tokens_per_second:,.0f} tokens per second"


def _training(scores: Scores) -> dict[str, str]:
    """The rows about the checkpoint of one model."""
    rows = {"checkpoint": scores.checkpoint, "updates": _updates(scores.updates)}
    if scores.training_seconds:
        rows["training"] = f"{scores.training_seconds / 60:.1f} minutes"
        if scores.checkpoint_seconds:
            rows["training"] += f", of which {scores.checkpoint_seconds / 60:.1f} to this checkpoint"
    return rows


def _training_of(scores: TranslationScores) -> dict[str, str]:
    """The rows about the checkpoints of all models."""
    if not scores.ensemble:
        return _training(scores)
    rows = {
        "checkpoint": scores.checkpoints,
        "updates": " + ".join(_updates(model.updates) for model in scores.models),
    }
    if seconds := scores.seconds_of_training:
        rows["training"] = f"{seconds / 60:.1f} minutes to these checkpoints, all models together"
    return rows


def _search_of(scores: TranslationScores) -> dict[str, str]:
    search = f"beam {scores.beam}, length penalty {scores.lenpen:g}"
    if scores.tuned is not None:
        search += f" (the best of {len(scores.tuned.rows)} on {scores.tuned.split})"
    return {"search": search, "decoding": _speed(scores)}


def _decoder_of(scores: TranslationScores) -> dict[str, str]:
    """The rows about truncated sentences and about exits, where there are any."""
    rows = {}
    if cut := scores.truncated:
        rows["truncated"] = f"{cut:,} sentence{'s' * (cut != 1)} whose source was cut to the model's length"
    if (exits := scores.exits) is not None:
        counts = ", ".join(f"{exit}: {count:,}" for exit, count in exits.tokens.items())
        rows["exits"] = f"{exits.policy}, mean {exits.mean:.2f} of {exits.blocks} (tokens by exit {counts})"
        rows["decoder"] = (
            f"{exits.mflops_per_token:.2f} MFLOP per token, {exits.mflops_per_token_full_depth:.2f} at full depth"
        )
    return rows


def _provenance(scores: Scores) -> dict[str, str]:
    """The rows about the machine, overrides, memories and the code."""
    rows = {"device": f"{scores.device}, {scores.threads} thread{'s' * (scores.threads != 1)}"}
    if scores.overrides:
        rows["overrides"] = ", ".join(f"{name} {value}" for name, value in scores.overrides.items())
    for layer, usage in scores.slot_usage.items():
        rows[f"memory {layer}"] = f"{usage.used:.1%} of the slots, divergence from uniform {usage.kl:.2f} nats"
    rows["commit"] = scores.commit or "unknown"
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in scores.versions.items())
    rows["command"] = scores.command
    return rows
