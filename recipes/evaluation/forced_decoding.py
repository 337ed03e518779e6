"""Passes of a model along given translations: the exits it takes and the memory slots it reads on the way.

Axes: B batch, T target tokens with the end of sentence.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from fairseq.data import data_utils

from recipes.evaluation.translator import Translation, Translator, batches
from recipes.metrics.results import Exits


def forced(
    translator: Translator,
    sentences: Sequence[str],
    translations: Sequence[Translation],
    max_tokens: int,
    **options: Any,
) -> Iterator[tuple[list[int], Any]]:
    """Force the model along `translations`: (indices of a batch, the model's output for it).

    `options` go to the model's forward pass.
    """
    encoded = [translator.encode(sentence)[0] for sentence in sentences]
    dictionary = translator.task.target_dictionary
    eos = torch.tensor([dictionary.eos()])
    for batch in batches([len(source) for source in encoded], max_tokens):
        inputs = translator.sample([encoded[i] for i in batch])["net_input"]
        previous = [torch.cat([eos, translations[i].indices[:-1]]) for i in batch]
        padded = data_utils.collate_tokens(previous, dictionary.pad())  # (B, T)
        with torch.no_grad():
            output = translator.model(**inputs, prev_output_tokens=padded.to(translator.device), **options)
        yield batch, output


def slot_usage(
    translator: Translator, sentences: Sequence[str], translations: Sequence[Translation], max_tokens: int
) -> Mapping[str, Any]:
    """The slots that the model's memories read along `translations`: a `memory_layers.usage.SlotUsage` by layer.

    Empty for a model without memories and for an ensemble.
    """
    if translator.is_ensemble or not hasattr(translator.model, "recorded_usage"):
        return {}
    records: Mapping[str, Any]
    with translator.model.recorded_usage() as records:
        for _ in forced(translator, sentences, translations, max_tokens):
            pass
    return records


def exits(
    translator: Translator, sentences: Sequence[str], translations: Sequence[Translation], max_tokens: int
) -> list[list[int]] | None:
    """The exit, from 1, of each token of `translations`: the one that beam search took.

    None for a model without exits and for an ensemble.
    """
    if translator.is_ensemble or not hasattr(translator.model, "operations"):
        return None
    decoder = translator.model.decoder
    if decoder.policy is None:
        return [[decoder.num_layers] * len(translation.indices) for translation in translations]
    taken: list[list[int]] = [[] for _ in sentences]
    for batch, (_, extra) in forced(translator, sentences, translations, max_tokens):
        for index, row in zip(batch, extra["exits"].tolist(), strict=True):
            taken[index] = row[: len(translations[index].indices)]
    return taken


def exit_figures(translator: Translator, sentences: Sequence[str], exits: Sequence[Sequence[int]]) -> Exits:
    """The figures about the `exits` of translations of `sentences`."""
    lengths = torch.tensor([len(translator.encode(sentence)[0]) for sentence in sentences])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in exits], batch_first=True)
    taken, full = translator.model.operations(padded, lengths)
    counts = padded[padded > 0].bincount().tolist()
    options = translator.model.decoder.exit_options
    policy = options.exit_policy
    return Exits(
        policy=f"{options.halting} halting" if policy == "halting" else policy,
        mean=round(padded.sum().item() / max(taken.tokens, 1), 4),
        blocks=translator.model.decoder.num_layers,
        tokens={str(exit): count for exit, count in enumerate(counts) if count},
        mflops_per_token=round(taken.mean / 1e6, 3),
        mflops_per_token_full_depth=round(full.mean / 1e6, 3),
    )
