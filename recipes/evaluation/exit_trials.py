"""Trials of thresholds of a model with exits: along full depth's translations or the references, and translating.

Axes: B sentences, T tokens of a translation or reference with its end of sentence, N exits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from depth_adaptive import calibration
from recipes.config.search import SearchOptions
from recipes.evaluation import forced_decoding
from recipes.evaluation.translator import Translation, Translator
from recipes.metrics import quality
from recipes.metrics.results import Score

# The estimation of temperatures: at most so many passes, the relative change that ends it, and the range. If a model
# knows nothing of the references, they are the most likely at an infinite temperature.
TEMPERATURE_PASSES, STEADY, COOLEST, HOTTEST = 8, 0.002, 0.2, 5.0
# Logits of one exit that are computed at a time.
MOST_LOGITS = 1 << 23

# One threshold for all blocks, or one for each block but the last.
Threshold = float | tuple[float, ...]


def option_value(threshold: Threshold) -> str:
    """The threshold as --exit-threshold takes it."""
    return ",".join(f"{x:g}" for x in (threshold if isinstance(threshold, tuple) else (threshold,)))


@dataclass
class Trial:
    """The effects of one threshold; None is full depth. What has not been measured is None."""

    threshold: Threshold | None
    # Forced along full depth's translations:
    forced_exit: float | None = None
    losses: torch.Tensor | None = None  # (B,) share of the tokens whose most likely one is not full depth's
    # Translating:
    exit: float | None = None
    tokens: dict[str, int] | None = None  # by their exit
    mflops: float | None = None  # of the decoder per token
    bleu: Score | None = None
    seconds: float | None = None

    @property
    def disagreement(self) -> float | None:
        """The mean of the losses over sentences."""
        return None if self.losses is None else float(self.losses.mean())


class Trials:
    """Tries thresholds of a policy on sentences with references, and remembers what it has measured.

    The translator's model stays as it is: each threshold has a twin of it, with the same weights.
    """

    def __init__(
        self,
        translator: Translator,
        sources: Sequence[str],
        references: Sequence[str],
        search: SearchOptions,
        *,
        policy: str,
        language: str,
    ) -> None:
        self.translator, self.policy, self.language = translator, policy, language
        self.sources, self.references, self.search = sources, references, search
        self.options = translator.model.decoder.exit_options
        self.exits: int = translator.model.decoder.num_layers
        self.measured: dict[Threshold | None, Trial] = {}
        self.translations: list[Translation] = []  # full depth's
        self.full = self.decoded(None)
        # By the same operations as with other thresholds, so that rounding makes no difference.
        self.tokens, _ = self._forced(1.0)
        self.full.forced_exit, self.full.losses = self.full.exit, torch.zeros(len(sources), dtype=torch.float64)

    def translator_for(self, threshold: Threshold | None) -> Translator:
        """The translator with this threshold, or at full depth."""
        options = replace(self.options, exit_policy="full")
        if threshold is not None:
            options = replace(options, exit_policy=self.policy, exit_threshold=option_value(threshold))
        return self.translator.with_model(self.translator.model.with_exits(options))

    def forced(self, threshold: Threshold) -> Trial:
        """Force the model along full depth's translations with this threshold."""
        trial = self.measured.setdefault(threshold, Trial(threshold))
        if trial.losses is None:
            tokens, exits = self._forced(threshold)
            pairs = zip(tokens, self.tokens, strict=True)
            trial.losses = torch.stack([(own != full).double().mean() for own, full in pairs])
            trial.forced_exit = float(torch.cat(exits).double().mean())
        return trial

    def _forced(self, threshold: Threshold) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The most likely next token and the exit at each token, (T,) of each sentence.

        The states of tokens that have left are copied upward and affect what later tokens see: the exits at one
        threshold do not follow from the confidences at another, so that each threshold needs a pass of its own.
        """
        tokens = [torch.empty(0)] * len(self.sources)
        exits = [torch.empty(0)] * len(self.sources)
        passes = forced_decoding.forced(
            self.translator_for(threshold), self.sources, self.translations, self.search.max_tokens
        )
        for batch, (logits, extra) in passes:
            likely, left = logits.argmax(-1).cpu(), extra["exits"].cpu()  # (B, T)
            for row, index in enumerate(batch):
                length = len(self.translations[index].indices)
                tokens[index], exits[index] = likely[row, :length], left[row, :length]
        return tokens, exits

    def decoded(self, threshold: Threshold | None) -> Trial:
        """Translate with this threshold."""
        trial = self.measured.setdefault(threshold, Trial(threshold))
        if trial.bleu is not None:
            return trial
        translator = self.translator_for(threshold)
        name = "full depth" if threshold is None else f"threshold {option_value(threshold)}"
        with tqdm(total=len(self.sources), unit=" sentences", smoothing=0.1, desc=name) as bar:
            translations, statistics = translator.translate(self.sources, self.search, progress=bar)
        exits = forced_decoding.exits(translator, self.sources, translations, self.search.max_tokens)
        assert exits is not None
        figures = forced_decoding.exit_figures(translator, self.sources, exits)
        trial.exit, trial.tokens, trial.mflops = figures.mean, figures.tokens, figures.mflops_per_token
        hypotheses = [translation.text for translation in translations]
        lowercase = translator.target.lowercase
        trial.bleu = quality.score(hypotheses, self.references, self.language, lowercase=lowercase)["bleu"]
        trial.seconds = round(statistics.seconds, 3)
        if threshold is None:
            self.translations = translations
        return trial

    @torch.no_grad()
    def fit_temperatures(self) -> None:
        """From here on, give each exit the temperature at which the references are most likely.

        Beam search adds up log-probabilities of different exits, which should therefore be equally sure. Trials before
        this one are forgotten, except that of full depth.
        """
        self.measured = {None: self.full}
        temperatures = torch.ones(self.exits, dtype=torch.float64)
        for _ in range(TEMPERATURE_PASSES):
            self._set_temperatures(temperatures.tolist())
            decoder = self.translator_for(None).model.decoder
            slopes, curvatures = torch.zeros_like(temperatures), torch.zeros_like(temperatures)
            for _, tokens, states in self._along_references("temperatures"):
                for n, state in enumerate(states):
                    slope, curvature = calibration.slope_and_curvature(decoder.exit_logits(n + 1, state), tokens)
                    slopes[n] += slope.cpu()
                    curvatures[n] += curvature.cpu()
            factors = (1 - slopes / curvatures.clamp(min=1e-9)).clamp(0.5, 2)
            temperatures = (temperatures / factors).clamp(COOLEST, HOTTEST)
            if bool(((factors - 1).abs() < STEADY).all()):
                break
        # They become a part of folder names.
        self._set_temperatures([float(f"{x:.3g}") for x in temperatures.tolist()])

    def _set_temperatures(self, temperatures: Sequence[float]) -> None:
        self.options = replace(self.options, exit_temperature=option_value(tuple(temperatures)))

    @torch.no_grad()
    def observed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and errors at all tokens of the references, T together.

        They are taken along the references and not along full depth's translations: there full depth would always be
        right, and what no exit is sure of would go to the last, which beam search does not bear out.

        Returns:
            The scores (N - 1, T) by which the policy would stop, and whether the most likely token of each exit is
            wrong (N, T).
        """
        decoder = self.translator_for(1.0).model.decoder
        scores = [torch.empty(0)] * len(self.sources)
        wrong = [torch.empty(0)] * len(self.sources)
        for lengths, tokens, states in self._along_references("scores"):
            by_exit, likely = [], []
            for n, state in enumerate(states, start=1):
                logits = decoder.exit_logits(n, state)
                likely.append(logits.argmax(-1))
                if n < len(states):
                    by_exit.append(decoder.policy.score(n, state, lambda logits=logits: logits))
            parts = (
                values.cpu().split(list(lengths.values()), 1)
                for values in (torch.stack(by_exit), torch.stack(likely) != tokens)
            )
            for index, score, differs in zip(lengths, *parts, strict=True):
                scores[index], wrong[index] = score, differs
        return torch.cat(scores, 1), torch.cat(wrong, 1)

    def _along_references(self, name: str) -> Iterator[tuple[dict[int, int], torch.Tensor, list[torch.Tensor]]]:
        """Force the model along the references without stopping, a batch at a time.

        Yields:
            The number of tokens of each sentence by its index; all their tokens (T,), one sentence after the other;
            and the output (T, D) of each block at them.
        """
        references = [self.translator.from_text(reference) for reference in self.references]
        max_tokens = min(self.search.max_tokens, MOST_LOGITS // len(self.translator.model.decoder.dictionary))
        passes = forced_decoding.forced(
            self.translator_for(None), self.sources, references, max_tokens, features_only=True
        )
        with tqdm(total=len(references), unit=" sentences", desc=name) as bar:
            for batch, (_, extra) in passes:
                lengths = {index: len(references[index].indices) for index in batch}
                states = [
                    torch.cat([state[row, :length] for row, length in enumerate(lengths.values())])
                    for state in extra["exit_states"]
                ]
                yield lengths, torch.cat([references[i].indices for i in batch]).to(states[0].device), states
                bar.update(len(batch))

    def rows(self) -> list[Trial]:
        """Full depth, then thresholds from the highest down."""

        def position(trial: Trial) -> tuple[float, ...]:
            threshold = trial.threshold
            if threshold is None:
                return ()
            return tuple(-x for x in ((sum(threshold), *threshold) if isinstance(threshold, tuple) else (threshold,)))

        return sorted(self.measured.values(), key=position)

    def table(self, chosen: Threshold | None) -> str:
        """The trials as aligned text."""
        names = ["full depth" if row.threshold is None else option_value(row.threshold) for row in self.rows()]
        width = max(map(len, names))
        lines = [
            f"{'':{width}}    along full depth's translations    translating",
            f"{'threshold':{width}}    mean exit     disagreement       mean exit    BLEU  seconds  MFLOP per token"
            "  tokens by exit",
        ]
        for name, row in zip(names, self.rows(), strict=True):
            cells = [f"{name:<{width}}"]
            cells.append(" " * 29 if row.losses is None else f"{row.forced_exit:9.2f}  {row.disagreement:15.2%}   ")
            if row.bleu is not None:
                cells.append(
                    f" {row.exit:9.2f}  {row.bleu.score:6.2f}  {row.seconds:7.1f}  {row.mflops:15.2f}  "
                    + " ".join(str((row.tokens or {}).get(str(n), 0)) for n in range(1, self.exits + 1))
                )
            lines.append("    ".join([*cells, *(["< chosen"] if row.threshold == chosen else [])]).rstrip())
        return "\n".join(lines) + "\n"
