"""Raw text to translation: pieces, beam search in batches of like length, text in the order of the input.

Axis letters: B batch, T target pieces with end of sentence, S source pieces with end of sentence.
"""

import re
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils

from recipes.data.prepared_corpus import Corpus
from recipes.evaluation import model_loading
from recipes.tokenization.subwords import Segmenter, load_segmenter
from thoth_core.errors import UserError

_INVENTED = re.compile(r"madeupword\d{4}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Newlines alone end them: other separators belong to the sentences."""
    try:
        text = path.read_bytes().decode("utf-8")  # read_text would take \r for a newline
    except FileNotFoundError:
        raise UserError(f"{path}: missing; prepare the corpus anew (recipes/prepare.sh)") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; prepare the corpus anew (recipes/prepare.sh)"
        ) from None
    return text.removesuffix("\n").split("\n") if text else []


@dataclass(frozen=True)
class Translation:
    """One translated sentence. `pieces` are those that the model wrote, without the end of sentence."""

    text: str
    pieces: list[str]
    tokens: torch.Tensor = field(repr=False)  # (T,), with the end of sentence; on the CPU
    score: float


@dataclass
class Statistics:
    """What `translate` took: seconds of decoding alone, pieces it wrote (ends of sentences too)."""

    seconds: float = 0.0
    tokens: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class Alignment:
    """weights[t, s]: how much target word t looked at source word s; rows sum to about 1."""

    source: list[str]
    target: list[str]
    weights: np.ndarray


class Translator:
    """A loaded model with its task and the sub-words of both languages.

    With `others`, models of the same dictionaries, an ensemble: each next piece is drawn from the mean of their
    probabilities (fairseq's EnsembleModel). What one model alone could tell (alignments, slots, exits) is not told.
    """

    def __init__(
        self,
        *,
        model: Any,
        task: Any,
        source: Segmenter,
        target: Segmenter,
        device: str = "cpu",
        others: Sequence[Any] = (),
    ):
        self.model = model.eval().to(device)
        self.others = [other.eval().to(device) for other in others]
        self.task = task
        self.device = device
        self.source = source
        self.target = target
        positions = [each.max_positions() for each in self.models]
        longest = [found[0] if isinstance(found, tuple) else found for found in positions]
        self.max_source = int(min(*longest, task.max_positions()[0]))

    @property
    def models(self) -> list[Any]:
        """All of the ensemble."""
        return [self.model, *self.others]

    @property
    def parameters(self) -> int:
        """The number of parameters, of an ensemble all models'."""
        return sum(p.numel() for model in self.models for p in model.parameters())

    def encode(self, sentence: str) -> tuple[torch.Tensor, bool]:
        """Its pieces as (S,) indices with the end of sentence; whether it was cut to the model's length."""
        dictionary = self.task.source_dictionary
        pieces = self.source.segment(sentence)
        indices = [dictionary.index(piece) for piece in pieces[: self.max_source - 1]]
        return torch.tensor([*indices, dictionary.eos()]), len(pieces) > self.max_source - 1

    def given(self, text: str) -> Translation:
        """A translation that is not the model's, as `forced` takes it, (T,) indices; what the model is too short for is
        cut. Pieces that the dictionary does not have are its unknown word."""
        dictionary = self.task.target_dictionary
        pieces = self.target.segment(text)[: self.model.max_decoder_positions() - 1]
        tokens = torch.tensor([*(dictionary.index(piece) for piece in pieces), dictionary.eos()])
        return Translation(text, pieces, tokens, 0.0)

    def batches(self, lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        """Indices in batches of like length, longest first, of at most `max_tokens` pieces when padded."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            # The first sentence of a batch is its longest.
            if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def translate(
        self, sentences: Sequence[str], options: Mapping[str, Any], *, progress: Any = None
    ) -> tuple[list[Translation], Statistics]:
        """Translations in the order of `sentences`, by beam search with `options` (see `recipes.config.search`).

        `progress.update(n)` is called with the sentences done. An empty sentence has an empty translation.
        How sentences fall into batches has no part in the result: the longest translation allowed is one
        number for all, and padding is masked by the model.
        """
        statistics = Statistics()
        empty = Translation(text="", pieces=[], tokens=torch.tensor([self.task.target_dictionary.eos()]), score=0.0)
        results = [empty] * len(sentences)
        for index, hypotheses in self._search(sentences, options, statistics, progress):
            results[index] = self._translation(hypotheses[0])
            statistics.tokens += len(hypotheses[0]["tokens"])
        return results, statistics

    def candidates(
        self, sentences: Sequence[str], options: Mapping[str, Any], *, progress: Any = None
    ) -> list[list[Mapping[str, Any]]]:
        """Every hypothesis that beam search finished, of each sentence; `ranked` chooses among them.

        fairseq's length penalty takes no part in how hypotheses are found or when the search ends
        (SequenceGenerator.finalize_hypos), so that one search serves every penalty. An empty sentence has none.
        """
        results: list[list[Mapping[str, Any]]] = [[] for _ in sentences]
        for index, hypotheses in self._search(sentences, {**options, "lenpen": 0.0}, Statistics(), progress):
            results[index] = [{"tokens": found["tokens"], "score": found["score"]} for found in hypotheses]
        return results

    def ranked(self, candidates: Sequence[Sequence[Mapping[str, Any]]], lenpen: float) -> list[str]:
        """The texts that `translate` finds with this length penalty."""
        texts = []
        for found in candidates:
            best = max(found, key=lambda f: float(f["score"] / len(f["tokens"]) ** lenpen), default=None)
            texts.append("" if best is None else self._translation(best).text)
        return texts

    def _search(
        self, sentences: Sequence[str], options: Mapping[str, Any], statistics: Statistics, progress: Any
    ) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
        """(index of a sentence, fairseq's hypotheses of it, the best first), for sentences that are not empty."""
        encoded: list[torch.Tensor] = []
        for sentence in sentences:
            indices, cut = self.encode(sentence)
            statistics.truncated += cut
            encoded.append(indices)
        todo = [i for i, sentence in enumerate(sentences) if sentence.strip()]
        if progress is not None:
            progress.update(len(sentences) - len(todo))
        lengths = [len(encoded[i]) for i in todo]
        generator = self._generator(options, max(lengths, default=1))
        for batch in self.batches(lengths, options["max-tokens"]):
            chosen = [todo[i] for i in batch]
            started = time.perf_counter()
            found = self.task.inference_step(generator, self.models, self._sample([encoded[i] for i in chosen]))
            if self.device != "cpu":
                torch.cuda.synchronize()
            statistics.seconds += time.perf_counter() - started
            yield from zip(chosen, found, strict=True)
            if progress is not None:
                progress.update(len(chosen))

    def slot_usage(
        self, sentences: Sequence[str], translations: Sequence[Translation], max_tokens: int
    ) -> dict[str, Any]:
        """Which slots of its memories a model reads when it is led through `translations`, by layer.

        Values are `memory_layers.usage.SlotUsage`. A model without memories has none, an ensemble neither.
        """
        if self.others or not hasattr(self.model, "recorded_usage"):
            return {}
        with self.model.recorded_usage() as records:
            for _ in self.forced(sentences, translations, max_tokens):
                pass
        return records

    def exits(
        self, sentences: Sequence[str], translations: Sequence[Translation], max_tokens: int
    ) -> list[list[int]] | None:
        """The exit, from 1, of each token of `translations`; None if the model has no exits, and of an ensemble.

        Beam search has taken the same.
        """
        if self.others or not hasattr(self.model, "operations"):
            return None
        decoder = self.model.decoder
        if decoder.policy is None:
            return [[decoder.num_layers] * len(translation.tokens) for translation in translations]
        found: list[list[int]] = [[] for _ in sentences]
        for batch, (_, extra) in self.forced(sentences, translations, max_tokens):
            for index, exits in zip(batch, extra["exits"].tolist(), strict=True):
                found[index] = exits[: len(translations[index].tokens)]
        return found

    def exit_figures(self, sentences: Sequence[str], exits: Sequence[Sequence[int]] | None) -> dict[str, Any]:
        """The part of scores.json about the decoder's exits, of translations of `sentences`; none without exits.

        Their policy and mean, how many tokens took each, and the decoder's operations per token.
        """
        if exits is None:
            return {}
        lengths = torch.tensor([len(self.encode(sentence)[0]) for sentence in sentences])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(e) for e in exits], batch_first=True)
        taken, full = self.model.operations(padded, lengths)
        counts = padded[padded > 0].bincount().tolist()
        options = self.model.decoder.exit_options
        policy = options.exit_policy
        return {
            "exits": {
                "policy": f"{options.halting} halting" if policy == "halting" else policy,
                "mean": round(padded.sum().item() / max(taken.tokens, 1), 4),
                "blocks": self.model.decoder.num_layers,
                "tokens": {str(exit): count for exit, count in enumerate(counts) if count},
                "mflops_per_token": round(taken.mean / 1e6, 3),
                "mflops_per_token_full_depth": round(full.mean / 1e6, 3),
            }
        }

    def forced(
        self, sentences: Sequence[str], translations: Sequence[Translation], max_tokens: int, **options: Any
    ) -> Iterator[tuple[list[int], Any]]:
        """Lead the model through `translations`: (indices of a batch, the model's output for it)."""
        encoded = [self.encode(sentence)[0] for sentence in sentences]
        dictionary = self.task.target_dictionary
        eos = torch.tensor([dictionary.eos()])
        for batch in self.batches([len(source) for source in encoded], max_tokens):
            inputs = self._sample([encoded[i] for i in batch])["net_input"]
            previous = [torch.cat([eos, translations[i].tokens[:-1]]) for i in batch]
            padded = data_utils.collate_tokens(previous, dictionary.pad())
            with torch.no_grad():
                output = self.model(**inputs, prev_output_tokens=padded.to(self.device), **options)
            yield batch, output

    def _generator(self, options: Mapping[str, Any], longest: int) -> Any:
        names = {name.replace("-", "_"): value for name, value in options.items()}
        # fairseq multiplies max_len_a by the longest source of the batch: here by the longest of all batches.
        names["max_len_b"] = int(names.pop("max_len_a") * longest) + names["max_len_b"]
        longest_target = min(names["max_len_b"], *(model.max_decoder_positions() - 1 for model in self.models))
        names["min_len"] = min(names["min_len"], longest_target)
        # fairseq fills a dictionary up to a multiple of 8 with words that no text holds: they are never written.
        invented = [word for word in self.task.target_dictionary.symbols if _INVENTED.fullmatch(word)]
        return self.task.build_generator(
            self.models, Namespace(**names), extra_gen_cls_kwargs={"tokens_to_suppress": invented}
        )

    def _sample(self, sources: Sequence[torch.Tensor]) -> dict[str, Any]:
        """A batch as fairseq's tasks make it. src_tokens: (B, S), padded on the side that the task says."""
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

    def _translation(self, hypothesis: Mapping[str, Any]) -> Translation:
        dictionary = self.task.target_dictionary
        tokens = hypothesis["tokens"].cpu()
        pieces = [dictionary[int(index)] for index in tokens if int(index) != dictionary.eos()]
        return Translation(self.target.text(pieces), pieces, tokens, float(hypothesis["score"]))

    def alignment(self, sentence: str, translation: Translation) -> Alignment | None:
        """Which source words the model looked at for each target word; None if it, or an ensemble, does not say.

        The weights are those of the forced decoding of the translation, added up over a source word's pieces
        and averaged over a target word's.
        """
        if self.others:
            return None
        source, _ = self.encode(sentence)  # (S,)
        eos = torch.tensor([self.task.target_dictionary.eos()])
        previous = torch.cat([eos, translation.tokens[:-1]])  # (T,)
        with torch.no_grad(), _alignments_wanted(self.model):
            output = self.model(
                source[None].to(self.device),
                torch.tensor([len(source)], device=self.device),
                previous[None].to(self.device),
            )
        weights = _attention(output)  # (1, T, S)
        if weights is None or tuple(weights.shape) != (1, len(previous), len(source)):
            return None
        source_words = words(self.source.marked([self.task.source_dictionary[int(i)] for i in source[:-1]]))
        target_words = words(self.target.marked(translation.pieces))
        if not source_words or not target_words:
            return None
        matrix = weights[0].float().cpu().numpy()
        columns = [matrix[:, start:stop].sum(1) for _, start, stop in source_words] + [matrix[:, -1]]
        by_source = np.stack(columns, axis=1)  # (T, source words + end of sentence)
        rows = np.stack([by_source[start:stop].mean(0) for _, start, stop in target_words])
        return Alignment([word for word, _, _ in source_words] + ["</s>"], [word for word, _, _ in target_words], rows)


def words(pieces: Sequence[str]) -> list[tuple[str, int, int]]:
    """Marked pieces joined to words: (word, first piece, piece after the last). A piece with ▁ starts one."""
    found: list[tuple[str, int, int]] = []
    for index, piece in enumerate(pieces):
        text = piece.replace("▁", "")
        if found and not piece.startswith("▁"):
            word, start, _ = found[-1]
            found[-1] = (word + text, start, index + 1)
        else:
            found.append((text, index, index + 1))
    return found


def _attention(output: Any) -> torch.Tensor | None:
    """The (B, T, S) attention in a fairseq model's output, or None."""
    if not isinstance(output, tuple) or len(output) < 2 or not isinstance(output[1], dict):
        return None
    attention = output[1].get("attn")
    if isinstance(attention, list | tuple):
        attention = attention[0] if attention else None
    return attention if isinstance(attention, torch.Tensor) and attention.dim() == 3 else None


@contextmanager
def _alignments_wanted(model: Any) -> Iterator[None]:
    """Switch `need_alignments` of a decoder that has it on, for the time of a `with` block."""
    decoder: Any = getattr(model, "decoder", None)
    before = getattr(decoder, "need_alignments", None)
    if before is None:
        yield
        return
    decoder.need_alignments = True
    try:
        yield
    finally:
        decoder.need_alignments = before


def load_translator(
    state: dict[str, Any],
    *,
    path: Path,
    corpus: Corpus,
    user_dir: Path | None,
    device: str,
    overrides: Mapping[str, Any] | None = None,
    others: Sequence[tuple[dict[str, Any], Path, Path | None]] = (),
) -> Translator:
    """The translator for a checkpoint's `state` on a prepared corpus; see `loading.load_model`.

    `others` are (state, path, user_dir) of the other models of an ensemble. Raises a UserError if one does not fit.
    """
    model, task = model_loading.load_model(state, path=path, corpus=corpus, user_dir=user_dir, overrides=overrides)
    models = []
    for other, its_path, its_plugin in others:
        its_model, its_task = model_loading.load_model(other, path=its_path, corpus=corpus, user_dir=its_plugin)
        for name in ("source_dictionary", "target_dictionary"):
            if getattr(its_task, name, None) != getattr(task, name, None):
                raise UserError(f"{its_path}: has another {name.replace('_', ' ')} than {path}: no ensemble of these")
        if its_task.cfg.left_pad_source != task.cfg.left_pad_source:
            raise UserError(f"{its_path}: pads the source on the other side than {path}: no ensemble of these")
        models.append(its_model)
    return Translator(
        model=model,
        task=task,
        source=load_segmenter(corpus.subwords, corpus.folder, corpus.source),
        target=load_segmenter(corpus.subwords, corpus.folder, corpus.target),
        device=device,
        others=models,
    )
