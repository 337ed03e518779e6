"""What thresholds do to a model with exits: along full depth's translations or the references, and when it decodes.

Axes: B sentences, T tokens of a translation or reference with its end of sentence, N exits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from depth_adaptive import calibration
from recipes.evaluation import model_loading
from recipes.evaluation import translator as decoding
from recipes.evaluation.evaluator import Place
from recipes.metrics import quality
from recipes.metrics.results import Score
from thoth_core.errors import UserError

# How near a mean exit must be to the wanted one to end the search.
CLOSE = 0.01
# Thresholds of single blocks are multiples of 1 / this.
GRID = 100
# Passes along the references that look for temperatures, at most, the change that ends them, and the range: the
# references are the most likely at infinity if a model knows nothing of them.
TEMPERINGS, STEADY, COOLEST, HOTTEST = 8, 0.002, 0.2, 5.0
# Of one exit, that are computed at a time.
MOST_LOGITS = 1 << 23

# One threshold for all blocks, or one for each block but the last.
Threshold = float | tuple[float, ...]
# A threshold for each position from 0; the higher it is, the later the exits.
Dial = Callable[[int], Threshold]


def written(threshold: Threshold) -> str:
    """As --exit-threshold takes it."""
    return ",".join(f"{x:g}" for x in (threshold if isinstance(threshold, tuple) else (threshold,)))


@dataclass
class Measured:
    """What one threshold does; None is full depth. What has not been measured is None."""

    threshold: Threshold | None
    # Led along full depth's translations:
    forced_exit: float | None = None
    losses: torch.Tensor | None = None  # (B,) share of the tokens at which the most likely one is not full depth's
    # Translating:
    exit: float | None = None
    tokens: dict[str, int] | None = None  # by their exit
    mflops: float | None = None  # of the decoder, a token
    bleu: Score | None = None
    seconds: float | None = None

    @property
    def disagreement(self) -> float | None:
        """The mean of the losses over sentences."""
        return None if self.losses is None else float(self.losses.mean())

    def figures(self) -> dict[str, Any]:
        """For calibration-*.json."""
        return {
            "threshold": self.threshold,
            "forced_mean_exit": self.forced_exit,
            "disagreement": self.disagreement,
            "mean_exit": self.exit,
            "tokens_by_exit": self.tokens,
            "mflops_per_token": self.mflops,
            "bleu": None if self.bleu is None else self.bleu.score,
            "seconds": self.seconds,
        }


class Trials:
    """Tries thresholds of a policy on sentences with references, and remembers what it has measured."""

    def __init__(
        self,
        translator: decoding.Translator,
        sources: Sequence[str],
        references: Sequence[str],
        search: Mapping[str, Any],
        *,
        policy: str,
        language: str,
    ) -> None:
        self.translator, self.policy, self.language = translator, policy, language
        self.sources, self.references, self.search = sources, references, search
        self.decoder = translator.model.decoder
        self.measured: dict[Threshold | None, Measured] = {}
        self.translations: list[decoding.Translation] = []  # full depth's
        self.full = self.decoded(None)
        # By the same operations as with other thresholds, so that rounding makes no difference.
        self.tokens, _ = self._led(1.0)
        self.full.forced_exit, self.full.losses = self.full.exit, torch.zeros(len(sources), dtype=torch.float64)

    def use(self, threshold: Threshold | None) -> None:
        """Let the model decode with this threshold, or at full depth."""
        options = replace(self.decoder.exit_options, exit_policy="full")
        if threshold is not None:
            options = replace(options, exit_policy=self.policy, exit_threshold=written(threshold))
        self.decoder.choose(options)

    def forced(self, threshold: Threshold) -> Measured:
        """Lead the model along full depth's translations with this threshold."""
        found = self.measured.setdefault(threshold, Measured(threshold))
        if found.losses is None:
            tokens, exits = self._led(threshold)
            pairs = zip(tokens, self.tokens, strict=True)
            found.losses = torch.stack([(own != full).double().mean() for own, full in pairs])
            found.forced_exit = float(torch.cat(exits).double().mean())
        return found

    def _led(self, threshold: Threshold) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The most likely next token and the exit at each token, (T,) of each sentence.

        The states of tokens that have left are copied upward, and move what later tokens see: the exits at one
        threshold do not follow from the confidences at another, so that each threshold needs a pass of its own.
        """
        self.use(threshold)
        tokens = [torch.empty(0)] * len(self.sources)
        exits = [torch.empty(0)] * len(self.sources)
        passes = self.translator.forced(self.sources, self.translations, self.search["max-tokens"])
        for batch, (logits, extra) in passes:
            likely, left = logits.argmax(-1).cpu(), extra["exits"].cpu()  # (B, T)
            for row, index in enumerate(batch):
                length = len(self.translations[index].tokens)
                tokens[index], exits[index] = likely[row, :length], left[row, :length]
        return tokens, exits

    @torch.no_grad()
    def temper(self) -> None:
        """Give each exit the temperature at which the references are most likely, from here on.

        Beam search adds up log-probabilities of different exits, which should therefore be sure in the same measure.
        What was measured before, but for full depth, is forgotten.
        """
        self.measured = {None: self.full}
        found = torch.ones(self.decoder.num_layers, dtype=torch.float64)
        for _ in range(TEMPERINGS):
            self._set_temperatures(found.tolist())
            slopes, curvatures = torch.zeros_like(found), torch.zeros_like(found)
            for _, tokens, states in self._along_references("temperatures"):
                for n, state in enumerate(states):
                    slope, curvature = calibration.slope_and_curvature(self.decoder.exit_logits(n + 1, state), tokens)
                    slopes[n] += slope.cpu()
                    curvatures[n] += curvature.cpu()
            factors = (1 - slopes / curvatures.clamp(min=1e-9)).clamp(0.5, 2)
            found = (found / factors).clamp(COOLEST, HOTTEST)
            if bool(((factors - 1).abs() < STEADY).all()):
                break
        self._set_temperatures([float(f"{x:.3g}") for x in found.tolist()])  # they will stand in names of folders

    def _set_temperatures(self, found: Sequence[float]) -> None:
        self.decoder.choose(replace(self.decoder.exit_options, exit_temperature=written(tuple(found))))

    @torch.no_grad()
    def observed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all tokens of the references: the scores (N - 1, T) by which the policy would stop, and whether the most
        likely token of each exit is another (N, T).

        Of the references and not of full depth's translations: there full depth would always be right, and what no
        exit is sure of would go to the last, which beam search does not bear out.
        """
        self.use(1.0)
        scores = [torch.empty(0)] * len(self.sources)
        wrong = [torch.empty(0)] * len(self.sources)
        for lengths, tokens, states in self._along_references("scores"):
            found, words = [], []
            for n, state in enumerate(states, start=1):
                logits = self.decoder.exit_logits(n, state)
                words.append(logits.argmax(-1))
                if n < len(states):
                    found.append(self.decoder.policy.score(n, state, lambda logits=logits: logits))
            parts = (
                of.cpu().split(list(lengths.values()), 1) for of in (torch.stack(found), torch.stack(words) != tokens)
            )
            for index, score, differs in zip(lengths, *parts, strict=True):
                scores[index], wrong[index] = score, differs
        return torch.cat(scores, 1), torch.cat(wrong, 1)

    def _along_references(self, name: str) -> Iterator[tuple[dict[int, int], torch.Tensor, list[torch.Tensor]]]:
        """Lead the model along the references, a batch at a time: each sentence's number of tokens, all their tokens
        (T,) one sentence after the other, and the output (T, D) of each block at them, where nothing has stopped."""
        references = [self.translator.given(reference) for reference in self.references]
        tokens = min(self.search["max-tokens"], MOST_LOGITS // len(self.decoder.dictionary))
        passes = self.translator.forced(self.sources, references, tokens, features_only=True)
        with tqdm(total=len(references), unit=" sentences", desc=name) as bar:
            for batch, (_, extra) in passes:
                lengths = {index: len(references[index].tokens) for index in batch}
                states = [
                    torch.cat([state[row, :length] for row, length in enumerate(lengths.values())])
                    for state in extra["exit_states"]
                ]
                yield lengths, torch.cat([references[i].tokens for i in batch]).to(states[0].device), states
                bar.update(len(batch))

    def decoded(self, threshold: Threshold | None) -> Measured:
        """Translate with this threshold."""
        found = self.measured.setdefault(threshold, Measured(threshold))
        if found.bleu is not None:
            return found
        self.use(threshold)
        name = "full depth" if threshold is None else f"threshold {written(threshold)}"
        with tqdm(total=len(self.sources), unit=" sentences", smoothing=0.1, desc=name) as bar:
            translations, statistics = self.translator.translate(self.sources, self.search, progress=bar)
        exits = self.translator.exits(self.sources, translations, self.search["max-tokens"])
        figures = self.translator.exit_figures(self.sources, exits)["exits"]
        found.exit, found.tokens, found.mflops = figures["mean"], figures["tokens"], figures["mflops_per_token"]
        hypotheses = [translation.text for translation in translations]
        lowercase = self.translator.target.lowercase
        found.bleu = quality.score(hypotheses, self.references, self.language, lowercase=lowercase)["bleu"]
        found.seconds = round(statistics.seconds, 3)
        if threshold is None:
            self.translations = translations
        return found

    def rows(self) -> list[Measured]:
        """Full depth, then thresholds from the highest down."""

        def place(row: Measured) -> tuple[float, ...]:
            given = row.threshold
            if given is None:
                return ()
            return tuple(-x for x in (sum(given), *given)) if isinstance(given, tuple) else (-given,)

        return sorted(self.measured.values(), key=place)

    def table(self, chosen: Threshold | None) -> str:
        """What was measured, as aligned text."""
        names = ["full depth" if row.threshold is None else written(row.threshold) for row in self.rows()]
        width = max(map(len, names))
        lines = [
            f"{'':{width}}    along full depth's translations    translating",
            f"{'threshold':{width}}    mean exit     disagreement       mean exit    BLEU  seconds  MFLOP a token"
            "  tokens by exit",
        ]
        for name, row in zip(names, self.rows(), strict=True):
            cells = [f"{name:<{width}}"]
            cells.append(" " * 29 if row.losses is None else f"{row.forced_exit:9.2f}  {row.disagreement:15.2%}   ")
            if row.bleu is not None:
                cells.append(
                    f" {row.exit:9.2f}  {row.bleu.score:6.2f}  {row.seconds:7.1f}  {row.mflops:13.2f}  "
                    + " ".join(str((row.tokens or {}).get(str(n), 0)) for n in range(1, self.decoder.num_layers + 1))
                )
            lines.append("    ".join([*cells, *(["< chosen"] if row.threshold == chosen else [])]).rstrip())
        return "\n".join(lines) + "\n"


def load(state: dict[str, Any], place: Place, *, policy: str) -> decoding.Translator:
    """The translator for a checkpoint's `state`; a UserError if `policy` has no threshold to find in its model."""
    name = place.checkpoint
    remedy = "calibrate a model of depth_adaptive with two decoder blocks or more"
    if model_loading.is_language_model(state):
        raise UserError(f"{name}: a language model, which has no exits; {remedy}")
    translator = decoding.load_translator(
        state,
        path=name,
        corpus=place.corpus,
        user_dir=place.user_dir,
        device=place.device,
        overrides=place.overrides,
    )
    decoder: Any = getattr(translator.model, "decoder", None)
    if not hasattr(decoder, "exit_options"):
        raise UserError(f"{name}: the model has no exits; {remedy}")
    if decoder.num_layers < 2:
        raise UserError(f"{name}: the decoder has one block, so one exit; {remedy}")
    halting = decoder.exit_options.halting
    if policy == "halting" and halting != "geometric":
        raise UserError(
            f"--policy halting: {name} was trained with --halting {halting}, which has no threshold; it must be "
            "geometric, or take --policy confidence"
        )
    return translator


def descending(steps: int) -> list[float]:
    """Thresholds from the highest below 1 down to 0, `steps` of them, fixed before anything is measured."""
    return [round(1 - k / steps, 6) for k in range(1, steps + 1)]


def one_for_all(steps: int) -> Dial:
    """The multiples of 1 / `steps`."""
    return lambda position: round(position / steps, 6)


def one_each(trials: Trials, steps: int) -> Dial:
    """Those at which most words of the references are found, by their mean exit there, from 1 to N in `steps`.

    Exits are tempered first, unless they have temperatures. Translations, and copied states, make another mean exit of
    the thresholds; but that of position 0 is always 1.
    """
    if trials.decoder.temperatures is None:
        trials.temper()
    scores, wrong = trials.observed()

    def dial(position: int) -> Threshold:
        if position == 0:
            return (0.0,) * len(scores)
        mean = 1 + len(scores) * position / steps
        return tuple(k / GRID for k in calibration.thresholds_for_mean_exit(scores, wrong, mean, GRID))

    return dial


def for_mean_exit(trials: Trials, wanted: float, steps: int, dial: Dial | None = None) -> Threshold:
    """A threshold whose translations have a mean exit of at most `wanted`: within CLOSE of it, or at the dial's next
    position it is above. Without a dial, of :func:`one_for_all`."""
    dial = dial or one_for_all(steps)
    low, high = 0, steps + 1
    while high - low > 1:
        middle = (low + high) // 2
        threshold = dial(middle)
        exit = trials.decoded(threshold).exit
        assert exit is not None
        if wanted - CLOSE <= exit <= wanted:
            return threshold
        if exit <= wanted:
            low = middle
        else:
            high = middle
    return dial(low)


def for_bleu_loss(trials: Trials, tolerated: float, steps: int, dial: Dial | None = None) -> Threshold | None:
    """Walk down from the highest threshold: the last before the first whose BLEU is too low; None: the first is."""
    dial = dial or one_for_all(steps)
    valid = None
    for threshold in map(dial, range(steps - 1, -1, -1)):
        found = trials.decoded(threshold)
        trials.forced(threshold)
        assert found.bleu is not None
        assert trials.full.bleu is not None
        # A difference of nothing but rounding is none.
        if found.bleu.score < trials.full.bleu.score - tolerated - 1e-9:
            break
        valid = threshold
    return valid


def for_disagreement(
    trials: Trials, *, tolerated: float, level: float, steps: int, resplits: int | None
) -> tuple[float | None, calibration.Resplits | None]:
    """The lowest threshold that learn-then-test accepts on all sentences, or None; and the same of random halves."""
    sentences = len(trials.sources)
    halves = calibration.halves(sentences, resplits) if resplits else None
    standing = [torch.arange(sentences), *(halves if halves is not None else [])]
    thresholds, losses = [], []
    with tqdm(descending(steps), unit=" thresholds", desc="disagreement") as bar:
        for threshold in bar:
            found = trials.forced(threshold)
            assert found.losses is not None
            thresholds.append(threshold)
            losses.append(found.losses)
            bar.set_postfix_str(f"{threshold:g}: {found.disagreement:.2%}")
            # Below the first threshold that fails everywhere there is nothing to look at.
            standing = [some for some in standing if passes(found.losses[some], tolerated, level)]
            if not standing:
                break
    table = torch.stack(losses)  # (K, B)
    chosen = calibration.lowest_valid_threshold(table, thresholds, tolerated=tolerated, level=level)
    if halves is None:
        return chosen, None
    return chosen, calibration.resplit(table, thresholds, halves, tolerated=tolerated, level=level)


def passes(losses: torch.Tensor, tolerated: float, level: float) -> bool:
    """Whether the test of one threshold accepts it."""
    return calibration.p_value(float(losses.mean()), losses.numel(), tolerated) <= level
