"""BLEU, chrF and TER of detokenised text by sacreBLEU's Python API, with signatures, and their table."""

from collections.abc import Mapping, Sequence
from typing import Any

from fairseq_host.errors import UserError

METRICS = ("bleu", "chrf", "ter")


def score(
    hypotheses: Sequence[str], references: Sequence[str], language: str, *, lowercase: bool = False
) -> dict[str, dict[str, Any]]:
    """{"bleu": {"score", "signature"}, "chrf": ..., "ter": ...} of `hypotheses` against one reference each.

    `language` (of the references) chooses sacreBLEU's tokeniser for BLEU where 13a does not fit (zh, ja, ko, with or
    without a script or region: zh_Hans). `lowercase` passes over case (case:lc in the signature), for hypotheses that
    have none; all else is sacreBLEU's default. Raises a UserError when there is nothing to score or the numbers of
    lines differ.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    if not references:
        raise UserError("no reference sentences: there is nothing to score")
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses):,} translations for {len(references):,} references: they must be as many")
    if not any(reference.strip() for reference in references):
        raise UserError("all references are empty: there is nothing to score")
    try:
        metrics: dict[str, Any] = {
            "bleu": BLEU(trg_lang=language.split("_")[0], lowercase=lowercase),
            "chrf": CHRF(lowercase=lowercase),
            "ter": TER(),  # passes over case always
        }
    except (RuntimeError, ImportError) as error:
        raise UserError(f"sacreBLEU's tokeniser for {language}: {str(error).splitlines()[0]}") from None
    found = {}
    for name, metric in metrics.items():
        result = metric.corpus_score(list(hypotheses), [list(references)])
        found[name] = {"score": result.score, "signature": str(metric.get_signature())}
    return found


def tokenised(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """{"score", "signature"}: BLEU of tokens as they are (tok:none), which depends on who made them."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="none", force=True)  # force: it would warn of tokens
    result = metric.corpus_score(list(hypotheses), [list(references)])
    return {"score": result.score, "signature": str(metric.get_signature())}


def table(scores: Mapping[str, Any]) -> str:
    """Scores with their signatures, then what they were measured with, as aligned text."""
    names = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER (lower is better)", "tokenised_bleu": "BLEU of tokens"}
    lines = [
        f"{scores['corpus']}, {scores['split']}: {scores['sentences']:,} sentences, model {scores['model']}",
        "",
    ]
    for name in (*METRICS, "tokenised_bleu"):
        if name in scores:
            lines.append(f"{names[name]:<22} {scores[name]['score']:6.2f}   {scores[name]['signature']}")
    return "\n".join([*lines, "", *facts(scores)]) + "\n"


def facts(scores: Mapping[str, Any]) -> list[str]:
    """What `scores`, of a translator or a language model, were measured with, a line each."""
    translated = "beam" in scores
    rows: dict[str, str] = {
        "parameters": f"{scores['parameters']:,}",
        "checkpoint": scores["checkpoint"],
        "updates": f"{scores['updates']:,}" if scores.get("updates") is not None else "unknown",
    }
    if scores.get("training_seconds"):
        rows["training"] = f"{scores['training_seconds'] / 60:.1f} minutes"
        if scores.get("checkpoint_seconds"):
            rows["training"] += f", of which {scores['checkpoint_seconds'] / 60:.1f} to this checkpoint"
    if translated:
        rows["search"] = f"beam {scores['beam']}, length penalty {scores['lenpen']:g}"
    speed = f"{scores['seconds']:.1f} s, {scores['tokens_per_second']:,.0f} sub-words a second"
    rows["decoding" if translated else "reading"] = speed
    rows["device"] = f"{scores['device']}, {scores['threads']} thread{'s' * (scores['threads'] != 1)}"
    if scores.get("overrides"):
        rows["overrides"] = ", ".join(f"{name} {value}" for name, value in scores["overrides"].items())
    if "exits" in scores:
        found = scores["exits"]
        counts = ", ".join(f"{exit}: {count:,}" for exit, count in found["tokens"].items())
        rows["exits"] = f"{found['policy']}, mean {found['mean']:.2f} of {found['blocks']} (tokens by exit {counts})"
        rows["decoder"] = (
            f"{found['mflops_per_token']:.2f} MFLOP a token, {found['mflops_per_token_full_depth']:.2f} at full depth"
        )
    for layer, usage in scores.get("slot_usage", {}).items():
        rows[f"memory {layer}"] = f"{usage['used']:.1%} of the slots, divergence from uniform {usage['kl']:.2f} nats"
    rows["commit"] = scores["commit"] or "unknown"
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in scores["versions"].items())
    rows["command"] = scores["command"]
    return [f"{name:<12} {value}" for name, value in rows.items()]
