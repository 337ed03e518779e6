"""Alignments of words, from the attention of a model along a translation.

Axes: T target tokens and S source tokens, both with the end of sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recipes.evaluation.translator import Translation, Translator


@dataclass(frozen=True)
class Alignment:
    """weights[t, s] of target word t on source word s; rows sum to about 1."""

    source: list[str]  # the end of sentence last
    target: list[str]
    weights: np.ndarray


def alignment(translator: Translator, sentence: str, translation: Translation) -> Alignment | None:
    """The weights of each target word on the source words; None if the model has none, and for an ensemble.

    They are those of the model forced along the translation, summed over the tokens of a source word and averaged
    over the tokens of a target word.
    """
    if translator.is_ensemble:
        return None
    source, _ = translator.encode(sentence)  # (S,)
    eos = torch.tensor([translator.task.target_dictionary.eos()])
    previous = torch.cat([eos, translation.indices[:-1]])  # (T,)
    with torch.no_grad():
        output = translator.model(
            source[None].to(translator.device),
            torch.tensor([len(source)], device=translator.device),
            previous[None].to(translator.device),
        )
    weights = _attention(output)  # (1, T, S)
    if weights is None or tuple(weights.shape) != (1, len(previous), len(source)):
        return None
    dictionary = translator.task.source_dictionary
    source_words = words(translator.source.marked([dictionary[int(i)] for i in source[:-1]]))
    target_words = words(translator.target.marked(translation.tokens))
    if not source_words or not target_words:
        return None
    matrix = weights[0].float().cpu().numpy()
    columns = [matrix[:, start:stop].sum(1) for _, start, stop in source_words] + [matrix[:, -1]]
    by_source = np.stack(columns, axis=1)  # (T, source words + end of sentence)
    rows = np.stack([by_source[start:stop].mean(0) for _, start, stop in target_words])
    return Alignment([word for word, _, _ in source_words] + ["</s>"], [word for word, _, _ in target_words], rows)


def words(tokens: Sequence[str]) -> list[tuple[str, int, int]]:
    """Marked tokens joined to words: (word, first token, token after the last). A token with ▁ starts a word."""
    joined: list[tuple[str, int, int]] = []
    for index, token in enumerate(tokens):
        text = token.replace("▁", "")
        if joined and not token.startswith("▁"):
            word, start, _ = joined[-1]
            joined[-1] = (word + text, start, index + 1)
        else:
            joined.append((text, index, index + 1))
    return joined


def _attention(output: Any) -> torch.Tensor | None:
    """The attention (B, T, S) in the output of a fairseq model; None without."""
    if not isinstance(output, tuple) or len(output) < 2 or not isinstance(output[1], dict):
        return None
    attention = output[1].get("attn")
    if isinstance(attention, list | tuple):
        attention = attention[0] if attention else None
    return attention if isinstance(attention, torch.Tensor) and attention.dim() == 3 else None
