"""BLEU, chrF and TER of detokenised text by sacreBLEU's Python API, with signatures, and their table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from thoth_core.errors import UserError

METRICS = ("bleu", "chrf", "ter")
NAMES = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER (lower is better)", "tokenised_bleu": "BLEU of tokens"}

# Codes of languages that are treated apart, here or in comparing.UNSPACED, where users write three letters.
THREE_LETTERS = {"zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh", "jpn": "ja", "kor": "ko", "khm": "km", "lao": "lo",
                 "mya": "my", "bur": "my", "tha": "th"}  # fmt: skip


def score(
    hypotheses: Sequence[str], references: Sequence[str], language: str, *, lowercase: bool = False
) -> dict[str, dict[str, Any]]:
    """{"bleu": {"score", "signature"}, "chrf": ..., "ter": ...} of `hypotheses` against one reference each.

    `language` (of the references) chooses sacreBLEU's tokeniser for BLEU where 13a does not fit (zh, ja, ko, with or
    without a script or region: zh_Hans). `lowercase` passes over case (case:lc in the signature), for hypotheses that
    have none; all else is sacreBLEU's default. Raises a UserError when there is nothing to score or the numbers of
    lines differ.
    """
    check(hypotheses, references)
    return measured(metrics(language, lowercase=lowercase), hypotheses, references)


def present(scores: Mapping[str, Any]) -> list[str]:
    """The names of the metrics that `scores` holds."""
    return [name for name in NAMES if name in scores]


def title(name: str) -> str:
    """The metric's name in a sentence."""
    return NAMES[name].removesuffix(" (lower is better)")


def check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raise a UserError if there is nothing to score or the numbers of lines differ."""
    if not references:
        raise UserError("no reference sentences: there is nothing to score")
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses):,} translations for {len(references):,} references: they must be as many")
    if not any(reference.strip() for reference in references):
        raise UserError("all references are empty: there is nothing to score")


def two_letters(language: str) -> str:
    """The code of a language by which a treatment of its own is found: "zh" of "zh_TW", "cmn" and "zho"."""
    code = language.split("_")[0]
    return THREE_LETTERS.get(code, code)


def metrics(language: str, *, lowercase: bool = False) -> dict[str, Any]:
    """sacreBLEU's metrics by the names of METRICS; see `score`."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    try:
        return {
            "bleu": BLEU(trg_lang=two_letters(language), lowercase=lowercase),
            "chrf": CHRF(lowercase=lowercase),
            "ter": TER(),  # passes over case always
        }
    except (RuntimeError, ImportError) as error:
        raise UserError(f"sacreBLEU's tokeniser for {language}: {str(error).splitlines()[0]}") from None


def metrics_of(signatures: Mapping[str, str]) -> dict[str, Any]:
    """sacreBLEU's metrics with the settings that `signatures` (by the names of NAMES) tell, but for its version.

    Raises a UserError for a signature that is none of these metrics' with one reference.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    found: dict[str, Any] = {}
    for name, signature in signatures.items():
        told = dict(part.split(":", 1) for part in signature.split("|") if ":" in part)
        lowercase = told.get("case") == "lc"
        try:
            if name in ("bleu", "tokenised_bleu"):
                # The Japanese and Korean tokenisers' signatures hold the version of their dictionary too.
                tokeniser = re.sub(r"^(ja|ko)-mecab.*", r"\1-mecab", told["tok"])
                found[name] = BLEU(
                    tokenize=tokeniser, lowercase=lowercase, smooth_method=told["smooth"], force=tokeniser == "none"
                )
            elif name == "chrf":
                found[name] = CHRF(
                    char_order=int(told["nc"]),
                    word_order=int(told["nw"]),
                    lowercase=lowercase,
                    whitespace=told["space"] == "yes",
                )
            else:
                yes = {option: told[option] == "yes" for option in ("norm", "punct", "asian")}
                found[name] = TER(
                    normalized=yes["norm"],
                    no_punct=not yes["punct"],
                    asian_support=yes["asian"],
                    case_sensitive=not lowercase,
                )
        except (KeyError, ValueError, AssertionError):
            raise UserError(f"{signature!r} is no signature of sacreBLEU's {title(name)}") from None
        except (RuntimeError, ImportError) as error:
            raise UserError(f"sacreBLEU's tokeniser for {signature}: {str(error).splitlines()[0]}") from None
    return found


def measured(metrics: Mapping[str, Any], hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """{"bleu": {"score", "signature"}, ...} by sacreBLEU's `metrics`."""
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
    names = " + ".join(model["model"] for model in models(scores))
    lines = [
        f"{scores['corpus']}, {scores['split']}: {scores['sentences']:,} sentences, model {names}",
        "",
    ]
    for name in present(scores):
        lines.append(f"{NAMES[name]:<22} {scores[name]['score']:6.2f}   {scores[name]['signature']}")
    return "\n".join([*lines, "", *facts(scores)]) + "\n"


def models(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What `scores` tell of each model: of the one, or of all of an ensemble."""
    return [scores, *scores.get("ensemble", [])]


def checkpoint(scores: Mapping[str, Any]) -> str:
    """The parameters, for people; of an ensemble with the model that each belong to."""
    told = [(model["model"], model["checkpoint"]) for model in models(scores)]
    return told[0][1] if len(told) == 1 else " + ".join(f"{name} ({parameters})" for name, parameters in told)


def checkpoint_seconds(scores: Mapping[str, Any]) -> float | None:
    """Training to the checkpoint, of an ensemble to all of them together; None if that of one is not known."""
    known = [s for model in models(scores) if (s := model.get("checkpoint_seconds")) is not None]
    return sum(known) if len(known) == len(models(scores)) else None


def facts(scores: Mapping[str, Any]) -> list[str]:
    """What `scores`, of a translator or a language model, were measured with, a line each."""
    translated = "beam" in scores
    rows: dict[str, str] = {
        "parameters": f"{scores['parameters']:,}",
        "checkpoint": checkpoint(scores),
        "updates": " + ".join(
            "unknown" if model.get("updates") is None else f"{model['updates']:,}" for model in models(scores)
        ),
    }
    if len(models(scores)) > 1:
        if seconds := checkpoint_seconds(scores):
            rows["training"] = f"{seconds / 60:.1f} minutes to these checkpoints, all models together"
    elif scores.get("training_seconds"):
        rows["training"] = f"{scores['training_seconds'] / 60:.1f} minutes"
        if scores.get("checkpoint_seconds"):
            rows["training"] += f", of which {scores['checkpoint_seconds'] / 60:.1f} to this checkpoint"
    if translated:
        rows["search"] = f"beam {scores['beam']}, length penalty {scores['lenpen']:g}"
        if scores.get("tuned"):
            rows["search"] += f" (the best of {len(scores['tuned']['rows'])} on {scores['tuned']['split']})"
    speed = f"{scores['seconds']:.1f} s, {scores['tokens_per_second']:,.0f} sub-words a second"
    rows["decoding" if translated else "reading"] = speed
    rows["device"] = f"{scores['device']}, {scores['threads']} thread{'s' * (scores['threads'] != 1)}"
    if cut := scores.get("truncated"):
        rows["truncated"] = f"{cut:,} sentence{'s' * (cut != 1)} whose source was cut to the model's length"
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
