"""BLEU, chrF2 and TER of detokenised text by sacreBLEU's Python API, with signatures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.metrics.results import Score
from thoth_core.errors import UserError

# The metrics that every translation is scored by, and the titles of these and of the one that only some have.
METRICS = ("bleu", "chrf", "ter")
TITLES = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER", "tokenised_bleu": "BLEU of tokens"}

# The two-letter code of languages that sacreBLEU or `breakdown` treats in a special way, by their three-letter codes.
_TWO_LETTERS = {"zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh", "jpn": "ja", "kor": "ko", "khm": "km", "lao": "lo",
                "mya": "my", "bur": "my", "tha": "th"}  # fmt: skip


def heading(metric: str) -> str:
    """The title of a metric above its scores."""
    return TITLES[metric] + (" (lower is better)" if metric == "ter" else "")


def score(
    hypotheses: Sequence[str], references: Sequence[str], language: str, *, lowercase: bool = False
) -> dict[str, Score]:
    """The scores of `hypotheses` against one reference each, by the names in METRICS.

    Args:
        language: language of the references. It chooses sacreBLEU's tokeniser for BLEU where 13a does not fit (zh, ja
            and ko, with or without a script or region, as in zh_Hans).
        lowercase: whether case is ignored (`case:lc` in the signature), for hypotheses that have none. All other
            settings are sacreBLEU's defaults.

    Raises:
        UserError: there is nothing to score, or the numbers of lines differ.
    """
    check_lines(hypotheses, references)
    return corpus_scores(metrics_for(language, lowercase=lowercase), hypotheses, references)


def check_lines(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raise a UserError if there is nothing to score or the numbers of lines differ."""
    if not references:
        raise UserError("no reference sentences: there is nothing to score")
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses):,} translations for {len(references):,} references: they must be as many")
    if not any(reference.strip() for reference in references):
        raise UserError("all references are empty: there is nothing to score")


def two_letter_code(language: str) -> str:
    """The code of a language without script and region: "zh" for "zh_TW", "cmn" and "zho"."""
    code = language.split("_")[0]
    return _TWO_LETTERS.get(code, code)


def metrics_for(language: str, *, lowercase: bool = False) -> dict[str, Any]:
    """sacreBLEU's metrics by the names in METRICS; see `score`."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    try:
        return {
            "bleu": BLEU(trg_lang=two_letter_code(language), lowercase=lowercase),
            "chrf": CHRF(lowercase=lowercase),
            "ter": TER(),  # always ignores case
        }
    except (RuntimeError, ImportError) as error:
        raise UserError(f"sacreBLEU's tokeniser for {language}: {str(error).splitlines()[0]}") from None


class SignatureError(UserError):
    """A text that is not a signature of sacreBLEU."""


def metrics_of(signatures: Mapping[str, str]) -> dict[str, Any]:
    """sacreBLEU's metrics with the settings in `signatures` (by the names in TITLES), whatever version these name.

    Raises:
        SignatureError: a signature is not one of these metrics with one reference.
        UserError: the package of a tokeniser is missing.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    metrics: dict[str, Any] = {}
    for name, signature in signatures.items():
        settings = dict(part.split(":", 1) for part in signature.split("|") if ":" in part)
        lowercase = settings.get("case") == "lc"
        try:
            if name in ("bleu", "tokenised_bleu"):
                # The signatures of the Japanese and Korean tokenisers also hold the version of their dictionary.
                tokeniser = re.sub(r"^(ja|ko)-mecab.*", r"\1-mecab", settings["tok"])
                metrics[name] = BLEU(
                    tokenize=tokeniser, lowercase=lowercase, smooth_method=settings["smooth"], force=tokeniser == "none"
                )
            elif name == "chrf":
                metrics[name] = CHRF(
                    char_order=int(settings["nc"]),
                    word_order=int(settings["nw"]),
                    lowercase=lowercase,
                    whitespace=settings["space"] == "yes",
                )
            else:
                yes = {option: settings[option] == "yes" for option in ("norm", "punct", "asian")}
                metrics[name] = TER(
                    normalized=yes["norm"],
                    no_punct=not yes["punct"],
                    asian_support=yes["asian"],
                    case_sensitive=not lowercase,
                )
        except (KeyError, ValueError, AssertionError):
            raise SignatureError(f"{signature!r} is not a signature of sacreBLEU's {TITLES[name]}") from None
        except (RuntimeError, ImportError) as error:
            raise UserError(f"sacreBLEU's tokeniser for {signature}: {str(error).splitlines()[0]}") from None
    return metrics


def corpus_scores(metrics: Mapping[str, Any], hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
    """The score by each of sacreBLEU's `metrics`, by its name."""
    scores = {}
    for name, metric in metrics.items():
        result = metric.corpus_score(list(hypotheses), [list(references)])
        scores[name] = Score(score=result.score, signature=str(metric.get_signature()))
    return scores


def tokenised_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """BLEU of tokens as they are (`tok:none`); it depends on the tokeniser that made them."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="none", force=True)  # without force sacreBLEU warns that the text is tokenised
    return corpus_scores({"tokenised_bleu": metric}, hypotheses, references)["tokenised_bleu"]
