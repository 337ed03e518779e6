"""The choice of a threshold: for a mean exit, for a loss of BLEU, or for a share of disagreement."""

from collections.abc import Callable

import torch
from tqdm import tqdm

from depth_adaptive import calibration
from depth_adaptive.calibration import Resplits
from recipes.evaluation.exit_trials import Threshold, Trials

# A mean exit this close to the requested one ends the search.
CLOSE = 0.01
# Thresholds of single blocks are multiples of 1 / this.
GRID = 100

# A threshold for each position from 0; the higher the position, the later the exits.
Dial = Callable[[int], Threshold]


def descending(steps: int) -> list[float]:
    """Thresholds from the highest below 1 down to 0, `steps` of them, fixed before anything is measured."""
    return [round(1 - k / steps, 6) for k in range(1, steps + 1)]


def same_for_all_blocks(steps: int) -> Dial:
    """A dial of the multiples of 1 / `steps`."""
    return lambda position: round(position / steps, 6)


def one_per_block(trials: Trials, steps: int) -> Dial:
    """A dial of the thresholds at which most words of the references are right, by their mean exit from 1 to N.

    Exits get temperatures first, unless they have some. The mean exit of translations, and of copied states, differs
    from that along the references; but that of position 0 is always 1.
    """
    if trials.translator.model.decoder.temperatures is None:
        trials.fit_temperatures()
    scores, wrong = trials.observed()

    def dial(position: int) -> Threshold:
        if position == 0:
            return (0.0,) * len(scores)
        mean = 1 + len(scores) * position / steps
        return tuple(k / GRID for k in calibration.thresholds_for_mean_exit(scores, wrong, mean, GRID))

    return dial


def for_mean_exit(trials: Trials, wanted: float, steps: int, dial: Dial | None = None) -> Threshold:
    """A threshold whose translations have a mean exit of at most `wanted`.

    It is within CLOSE of it, or that of the dial's next position is above it. The dial is `same_for_all_blocks` if
    none is given.
    """
    dial = dial or same_for_all_blocks(steps)
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
    """The last threshold, from the highest down, before the first whose BLEU is too low; None if that is the first."""
    dial = dial or same_for_all_blocks(steps)
    valid = None
    for threshold in map(dial, range(steps - 1, -1, -1)):
        trial = trials.decoded(threshold)
        trials.forced(threshold)
        assert trial.bleu is not None
        assert trials.full.bleu is not None
        # A difference of nothing but rounding is none.
        if trial.bleu.score < trials.full.bleu.score - tolerated - 1e-9:
            break
        valid = threshold
    return valid


def for_disagreement(
    trials: Trials, *, tolerated: float, level: float, steps: int, resplits: int | None
) -> tuple[float | None, Resplits | None]:
    """The lowest threshold that learn-then-test accepts on all sentences, or None; and the same of random halves."""
    sentences = len(trials.sources)
    halves = calibration.halves(sentences, resplits) if resplits else None
    standing = [torch.arange(sentences), *(halves if halves is not None else [])]
    thresholds, losses = [], []
    with tqdm(descending(steps), unit=" thresholds", desc="disagreement") as bar:
        for threshold in bar:
            trial = trials.forced(threshold)
            assert trial.losses is not None
            thresholds.append(threshold)
            losses.append(trial.losses)
            bar.set_postfix_str(f"{threshold:g}: {trial.disagreement:.2%}")
            # Thresholds below the first one that fails on all sentences and on every half are not tried.
            standing = [some for some in standing if _is_accepted(trial.losses[some], tolerated, level)]
            if not standing:
                break
    table = torch.stack(losses)  # (K, B) of K thresholds
    chosen = calibration.lowest_valid_threshold(table, thresholds, tolerated=tolerated, level=level)
    if halves is None:
        return chosen, None
    return chosen, calibration.resplit(table, thresholds, halves, tolerated=tolerated, level=level)


def _is_accepted(losses: torch.Tensor, tolerated: float, level: float) -> bool:
    """Whether the test of one threshold accepts it."""
    return calibration.p_value(float(losses.mean()), losses.numel(), tolerated) <= level
