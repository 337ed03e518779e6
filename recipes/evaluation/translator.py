"""Raw text to translation: tokens, beam search in batches of similar length, text in the order of the input.

Axes: B batch, T target tokens and S source tokens, both with the end of sentence.
"""

import re
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq.data import data_utils

from recipes.config.search import SearchOptions
from recipes.data.prepared_corpus import Corpus
from recipes.evaluation import model_loading
from recipes.evaluation.model_loading import LoadedCheckpoint
from recipes.evaluation.selection import Selection
from recipes.tokenization.subwords import Segmenter, load_segmenter
from thoth_core.errors import UserError

# Entries that fairseq adds to a dictionary to fill it up to a multiple of 8.
_FILLER = re.compile(r"madeupword\d{4}")


@dataclass(frozen=True)
class Translation:
    """A translated sentence."""

    text: str
    tokens: list[str]  # without the end of sentence
    indices: torch.Tensor = field(repr=False)  # (T,) on the CPU
    score: float  # log-probability in nats, divided by length ** lenpen


@dataclass
class Statistics:
    """What `Translator.translate` took."""

    seconds: float = 0.0  # of beam search alone
    tokens: int = 0  # tokens written, ends of sentences included
    truncated: int = 0  # sentences cut to the model's length


class Translator:
    """Models with their task and the segmentation of both languages.

    Several models of the same dictionaries are an ensemble: each next token is drawn from the average of their
    probabilities (fairseq's EnsembleModel). Nothing of a translation is kept here, so that several threads may use one.
    """

    def __init__(
        self, *, models: Sequence[Any], task: Any, source: Segmenter, target: Segmenter, device: str = "cpu"
    ) -> None:
        self.models = [model.eval().to(device) for model in models]
        self.task = task
        self.device = device
        self.source = source
        self.target = target
        positions = [model.max_positions() for model in self.models]
        longest = [each[0] if isinstance(each, tuple) else each for each in positions]
        self.max_source = int(min(*longest, task.max_positions()[0]))

    def with_model(self, model: Any) -> "Translator":
        """The same with another model."""
        return Translator(models=[model], task=self.task, source=self.source, target=self.target, device=self.device)

    @property
    def model(self) -> Any:
        """The model, of an ensemble the first one."""
        return self.models[0]

    @property
    def is_ensemble(self) -> bool:
        return len(self.models) > 1

    @property
    def parameters(self) -> int:
        """The number of parameters of all models."""
        return sum(p.numel() for model in self.models for p in model.parameters())

    def encode(self, sentence: str) -> tuple[torch.Tensor, bool]:
        """The source as indices (S,), and whether it was cut to the model's length."""
        dictionary = self.task.source_dictionary
        tokens = self.source.segment(sentence)
        indices = [dictionary.index(token) for token in tokens[: self.max_source - 1]]
        return torch.tensor([*indices, dictionary.eos()]), len(tokens) > self.max_source - 1

    def from_text(self, text: str) -> Translation:
        """A translation with this text, such as a reference, to force the model along; cut to the model's length.

        Tokens that the dictionary does not have become its unknown word.
        """
        dictionary = self.task.target_dictionary
        tokens = self.target.segment(text)[: self.model.max_decoder_positions() - 1]
        indices = torch.tensor([*(dictionary.index(token) for token in tokens), dictionary.eos()])
        return Translation(text, tokens, indices, 0.0)

    def translate(
        self, sentences: Sequence[str], search: SearchOptions, *, progress: Any = None
    ) -> tuple[list[Translation], Statistics]:
        """Translations in the order of `sentences`, by beam search.

        `progress.update(n)` is called with the number of sentences done. An empty sentence has an empty translation.
        The batches do not affect the result: the longest translation allowed is one number for all sentences, and
        the model masks padding.
        """
        statistics = Statistics()
        empty = Translation(text="", tokens=[], indices=torch.tensor([self.task.target_dictionary.eos()]), score=0.0)
        results = [empty] * len(sentences)
        for index, hypotheses in self._search(sentences, search, statistics, progress):
            results[index] = self._translation(hypotheses[0])
            statistics.tokens += len(hypotheses[0]["tokens"])
        return results, statistics

    def candidates(
        self, sentences: Sequence[str], search: SearchOptions, *, progress: Any = None
    ) -> list[list[Mapping[str, Any]]]:
        """Every finished hypothesis of each sentence; `best_texts` chooses among them. An empty sentence has none.

        fairseq's length penalty affects neither which hypotheses the search finishes nor when the search ends
        (SequenceGenerator.finalize_hypos), so that one search serves every penalty.
        """
        unpenalised = search.model_copy(update={"lenpen": 0.0})
        results: list[list[Mapping[str, Any]]] = [[] for _ in sentences]
        for index, hypotheses in self._search(sentences, unpenalised, Statistics(), progress):
            results[index] = [{"tokens": each["tokens"], "score": each["score"]} for each in hypotheses]
        return results

    def best_texts(self, candidates: Sequence[Sequence[Mapping[str, Any]]], lenpen: float) -> list[str]:
        """The texts that `translate` returns with this length penalty."""
        texts = []
        for hypotheses in candidates:
            best = max(hypotheses, key=lambda h: float(h["score"] / len(h["tokens"]) ** lenpen), default=None)
            texts.append("" if best is None else self._translation(best).text)
        return texts

    def sample(self, sources: Sequence[torch.Tensor]) -> dict[str, Any]:
        """A batch as fairseq's tasks make it. src_tokens: (B, S), padded on the task's side."""
        padded = data_utils.collate_tokens(
            list(sources),
            self.task.source_dictionary.pad(),
            self.task.source_dictionary.eos(),
            left_pad=self.task.cfg.left_pad_source,
        )
        lengths = torch.tensor([len(source) for source in sources])
        return {
            "id": torch.arange(len(sources), device=self.device),
            "nsentences": len(sources),
            "ntokens": int(lengths.sum()),
            "net_input": {"src_tokens": padded.to(self.device), "src_lengths": lengths.to(self.device)},
        }

    def _search(
        self, sentences: Sequence[str], search: SearchOptions, statistics: Statistics, progress: Any
    ) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
        """(index of a sentence, its hypotheses by fairseq, the best first), for sentences that are not empty."""
        encoded: list[torch.Tensor] = []
        for sentence in sentences:
            indices, truncated = self.encode(sentence)
            statistics.truncated += truncated
            encoded.append(indices)
        waiting = [i for i, sentence in enumerate(sentences) if sentence.strip()]
        if progress is not None:
            progress.update(len(sentences) - len(waiting))
        lengths = [len(encoded[i]) for i in waiting]
        generator = self._generator(search, max(lengths, default=1))
        for batch in batches(lengths, search.max_tokens):
            chosen = [waiting[i] for i in batch]
            sample = self.sample([encoded[i] for i in chosen])
            started = time.perf_counter()
            hypotheses = self.task.inference_step(generator, self.models, sample)
            if self.device != "cpu":
                torch.cuda.synchronize()
            statistics.seconds += time.perf_counter() - started
            yield from zip(chosen, hypotheses, strict=True)
            if progress is not None:
                progress.update(len(chosen))

    def _generator(self, search: SearchOptions, longest: int) -> Any:
        settings = search.model_dump(by_alias=False)
        # fairseq multiplies max_len_a by the longest source of the batch; here it is the longest of all batches.
        settings["max_len_b"] = int(settings.pop("max_len_a") * longest) + settings["max_len_b"]
        longest_target = min(settings["max_len_b"], *(model.max_decoder_positions() - 1 for model in self.models))
        settings["min_len"] = min(settings["min_len"], longest_target)
        fillers = [word for word in self.task.target_dictionary.symbols if _FILLER.fullmatch(word)]
        return self.task.build_generator(
            self.models, Namespace(**settings), extra_gen_cls_kwargs={"tokens_to_suppress": fillers}
        )

    def _translation(self, hypothesis: Mapping[str, Any]) -> Translation:
        dictionary = self.task.target_dictionary
        indices = hypothesis["tokens"].cpu()
        tokens = [dictionary[int(index)] for index in indices if int(index) != dictionary.eos()]
        return Translation(self.target.text(tokens), tokens, indices, float(hypothesis["score"]))


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, of at most `max_tokens` tokens when padded."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first sentence of a batch is its longest.
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint's state, its file for messages, and the folder of its plugin."""

    state: Mapping[str, Any]
    path: Path
    user_dir: Path | None = None


def load_translator(
    sources: Sequence[ModelSource],
    *,
    corpus: Corpus,
    device: str,
    overrides: Mapping[str, Any] | None = None,
) -> Translator:
    """The translator of a model, or of an ensemble, on a prepared corpus; see `model_loading.load_model`.

    Raises:
        UserError: a checkpoint does not fit, or models cannot be an ensemble.
    """
    first = sources[0]
    models, tasks = [], []
    for source in sources:
        model, task = model_loading.load_model(
            source.state,
            path=source.path,
            corpus=corpus,
            user_dir=source.user_dir,
            overrides=overrides if source is first else None,
        )
        models.append(model)
        tasks.append(task)
        for name in ("source_dictionary", "target_dictionary"):
            if getattr(task, name, None) != getattr(tasks[0], name, None):
                raise UserError(
                    f"{source.path}: has another {name.replace('_', ' ')} than {first.path}: no ensemble of these"
                )
        if task.cfg.left_pad_source != tasks[0].cfg.left_pad_source:
            raise UserError(f"{source.path}: pads the source on the other side than {first.path}: no ensemble of these")
    return Translator(
        models=models,
        task=tasks[0],
        source=load_segmenter(corpus.subwords, corpus.folder, corpus.source),
        target=load_segmenter(corpus.subwords, corpus.folder, corpus.target),
        device=device,
    )


def translator_of(selection: Selection, loaded: Sequence[LoadedCheckpoint]) -> Translator:
    """The translator of the selected models."""
    sources = [ModelSource(checkpoint.state, checkpoint.path, checkpoint.selected.plugin) for checkpoint in loaded]
    device = model_loading.device_of(selection)
    return load_translator(sources, corpus=selection.corpus, device=device, overrides=selection.overrides)
