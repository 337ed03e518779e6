"""The cost of a text to a language model: nats in all, perplexity per token and per word, bits per character."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from thoth_core.errors import UserError


@dataclass(frozen=True)
class TextCost:
    """What a text cost."""

    nats: float
    tokens: int  # ends of sentences included
    seconds: float
    usages: Mapping[str, Any]  # a `memory_layers.usage.SlotUsage` by layer; empty without memories


def measure(model: Any, task: Any, split: str, *, max_tokens: int, device: str, progress: Any = None) -> TextCost:
    """Run `model` over a split, cut into samples as in training (fairseq's sample_break_mode).

    `progress.update(n)` is called with the number of tokens done.

    Raises:
        UserError: a sentence is longer than the samples that the model was trained on.
    """
    task.load_dataset(split)
    dataset = task.dataset(split)
    longest, most = int(dataset.sizes.max()), int(model.max_positions())
    if longest > most:
        raise UserError(
            f"{split}: a sentence has {longest:,} tokens, the model was trained on at most {most:,}; train it with "
            "a larger --tokens-per-sample, or with --sample-break-mode none, which cuts"
        )
    batches = task.get_batch_iterator(
        dataset=dataset,
        max_tokens=max(max_tokens, longest),
        max_positions=(most,),
        ignore_invalid_inputs=False,
        required_batch_size_multiple=1,
    ).next_epoch_itr(shuffle=False)
    model.eval().to(device)
    nats, tokens = 0.0, 0
    began = time.perf_counter()
    recorded = model.recorded_usage() if hasattr(model, "recorded_usage") else nullcontext({})
    with torch.no_grad(), recorded as usages:
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch["net_input"].items()}
            target = batch["target"].to(device)
            lprobs = model.get_normalized_probs(model(**inputs), log_probs=True).float()
            pad = task.target_dictionary.pad()
            nats += F.nll_loss(lprobs.flatten(0, 1), target.flatten(), ignore_index=pad, reduction="sum").item()
            count = int((target != pad).sum())
            tokens += count
            if progress is not None:
                progress.update(count)
    return TextCost(nats, tokens, time.perf_counter() - began, usages)


def figures(cost: TextCost, lines: Sequence[str]) -> dict[str, Any]:
    """The fields of `LanguageModelScores` about the text `lines`.

    The end of a sentence counts as a word and as a character.
    """
    words = sum(len(line.split()) + 1 for line in lines)
    characters = sum(len(line) + 1 for line in lines)
    return {
        "perplexity": {"word": math.exp(cost.nats / words), "subword": math.exp(cost.nats / cost.tokens)},
        "bits_per_character": cost.nats / math.log(2) / characters,
        "words": words,
        "tokens": cost.tokens,
        "characters": characters,
        "seconds": round(cost.seconds, 3),
        "tokens_per_second": round(cost.tokens / max(cost.seconds, 1e-9), 1),
    }
