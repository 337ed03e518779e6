"""How well a language model foretells a text: nats in all, perplexity a sub-word and a word, bits a character."""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from thoth_core.errors import UserError


@dataclass(frozen=True)
class Foretold:
    """What the text cost: `nats`, over `subwords` (ends of sentences among them), within `seconds`."""

    nats: float
    subwords: int
    seconds: float


def measure(
    model: Any, task: Any, split: str, *, max_tokens: int, device: str, progress: Any = None
) -> tuple[Foretold, dict[str, Any]]:
    """Run `model` over a split, cut into samples as the model was trained on (fairseq's sample_break_mode).

    Returns what it cost, and which slots of its memories were read, by layer (`memory_layers.usage.SlotUsage`).
    `progress.update(n)` is called with the sub-words done.
    """
    task.load_dataset(split)
    dataset = task.dataset(split)
    longest, most = int(dataset.sizes.max()), int(model.max_positions())
    if longest > most:
        raise UserError(
            f"{split}: a sentence has {longest:,} sub-words, the model was trained on at most {most:,}; train it with "
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
    nats, subwords = 0.0, 0
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
            subwords += count
            if progress is not None:
                progress.update(count)
    return Foretold(nats, subwords, time.perf_counter() - began), usages


def scores(found: Foretold, lines: Sequence[str]) -> dict[str, Any]:
    """Perplexities of the text `lines`. The end of a sentence counts as a word and as a character."""
    words = sum(len(line.split()) + 1 for line in lines)
    characters = sum(len(line) + 1 for line in lines)
    return {
        "perplexity": {
            "word": math.exp(found.nats / words),
            "subword": math.exp(found.nats / found.subwords),
        },
        "bits_per_character": found.nats / math.log(2) / characters,
        "words": words,
        "tokens": found.subwords,
        "characters": characters,
        "seconds": round(found.seconds, 3),
        "tokens_per_second": round(found.subwords / max(found.seconds, 1e-9), 1),
    }
