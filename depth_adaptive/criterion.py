"""``depth_adaptive_cross_entropy``: the loss of all exits and of the halting module (equation 7).

Axes: N exits (counted from 1), B batch, T target, D dimension of the decoder, M tokens that are not padding.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from depth_adaptive.decoder import Decoder
from depth_adaptive.losses import WEIGHTINGS, exit_weights, linear_cross_entropy, scale_gradient
from depth_adaptive.oracles import ORACLES, sequence_oracle, token_oracle
from fairseq_compat import install
from thoth_core.errors import UserError


@dataclass
class DepthAdaptiveCriterionConfig(FairseqDataclass):
    """Options of the criterion."""

    label_smoothing: float = field(default=0.0, metadata={"help": "label smoothing of every exit"})
    exit_weighting: ChoiceEnum(list(WEIGHTINGS)) = field(  # type: ignore[valid-type]
        default="uniform",
        metadata={"help": "weight of exit n in the loss of aligned training: 1, n, its square root, or their inverses"},
    )
    exit_distillation: float = field(
        default=0.0,
        metadata={
            "help": "part of the target that is the distribution of the last exit instead of the reference, for all "
            "other exits in aligned training"
        },
    )
    halting_weight: float = field(default=1.0, metadata={"help": "weight alpha of the halting loss"})
    halting_oracle: ChoiceEnum(ORACLES) = field(  # type: ignore[valid-type]
        default="correctness",
        metadata={"help": "score of the oracle: the likelihood of the reference, or whether it is predicted"},
    )
    halting_penalty: float = field(default=0.1, metadata={"help": "penalty lambda of the oracle per block"})
    halting_smoothing: float = field(
        default=0.0, metadata={"help": "width sigma of the RBF kernel over neighbouring tokens; 0: no smoothing"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


class Count(NamedTuple):
    """Sums over the tokens that are scored at one exit."""

    nll: Tensor  # negative log-likelihood, without smoothing
    correct: Tensor  # tokens that are predicted
    tokens: int  # number of tokens


@register_criterion("depth_adaptive_cross_entropy", dataclass=DepthAdaptiveCriterionConfig)
class DepthAdaptiveCriterion(FairseqCriterion):
    """The loss summed over tokens, as in fairseq's criteria.

    The sample size is the number of tokens or, with --sentence-avg, of sentences.
    """

    def __init__(
        self,
        task: Any,
        label_smoothing: float,
        exit_weighting: str,
        exit_distillation: float,
        halting_weight: float,
        halting_oracle: str,
        halting_penalty: float,
        halting_smoothing: float,
        sentence_avg: bool,
    ) -> None:
        super().__init__(task)
        for name, value, high in (
            ("label-smoothing", label_smoothing, 1.0),
            ("exit-distillation", exit_distillation, 1.0),
            ("halting-weight", halting_weight, math.inf),
            ("halting-penalty", halting_penalty, math.inf),
            ("halting-smoothing", halting_smoothing, math.inf),
        ):
            if not 0 <= value < high:
                rule = "at least 0" + (" and below 1" if high == 1 else "")
                raise UserError(f"--{name} must be {rule}, given {value:g}")
        self.smoothing = label_smoothing
        self.weighting = exit_weighting
        self.distillation = exit_distillation
        self.halting_weight = halting_weight
        self.oracle = halting_oracle
        self.penalty = halting_penalty
        self.sigma = halting_smoothing
        self.sentence_avg = sentence_avg

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the options of :class:`DepthAdaptiveCriterionConfig`."""
        install()
        super().add_args(parser)

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> "DepthAdaptiveCriterion":
        """Build the criterion from its configuration.

        Raises:
            UserError: an option out of range.
        """
        install()
        return super().build_criterion(cfg, task)

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """The loss, the sample size and the values to log for a batch, as fairseq's criteria return them.

        Raises:
            UserError: the model has no exits, or its options exclude those of the criterion.
        """
        decoder = getattr(model, "decoder", None)  # also through fairseq's wrappers for several processes
        if not isinstance(decoder, Decoder):
            raise UserError("--criterion depth_adaptive_cross_entropy needs --arch depth_adaptive_transformer")
        self.check(decoder)
        _, extra = model(**sample["net_input"], features_only=True)
        target = sample["target"]
        real = target != self.padding_idx  # (B, T)
        tokens, sentences = sample["ntokens"], target.size(0)
        size = sentences if self.sentence_avg else tokens
        log: dict[str, Any] = {"ntokens": tokens, "nsentences": sentences, "sample_size": size}
        likelihoods = correct = None
        counted = []  # passes in which each exit's tokens are counted
        if "exit_states" in extra:
            # In mixed training, only the oracle needs this.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not extra["mixed"]):
                exits_loss, likelihoods, correct = self.all_exits(decoder, extra["exit_states"], target, real)
            counted.append(
                [Count(*sums, tokens) for sums in zip(-likelihoods.sum((1, 2)), correct.sum((1, 2)), strict=True)]
            )
        if extra["mixed"]:
            sampled = [self.sampled_exits(decoder, exits, states, target, real) for exits, states in extra["mixed"]]
            exits_loss = torch.stack([loss for loss, _ in sampled]).mean()
            counted = counted or [counts for _, counts in sampled]
        for n, counts in enumerate(zip(*counted, strict=True), start=1):
            for name in ("nll", "correct", "tokens"):
                log[f"{name}_{n}"] = sum(getattr(count, name) for count in counts)
        loss = exits_loss
        if decoder.halting is not None:
            assert likelihoods is not None
            assert correct is not None
            halting_loss, oracle = self.halting(decoder, extra, likelihoods, correct, real)
            loss = loss + self.halting_weight * halting_loss
            log["halting_loss"], log["oracle_exit"] = halting_loss.detach(), oracle
        log["exits_loss"], log["loss"] = exits_loss.detach(), loss.detach()
        return loss, size, log

    def check(self, decoder: Decoder) -> None:
        """Raise a UserError for options that the options of the model exclude."""
        options = decoder.exit_options
        if options.exit_training == "mixed":
            for option, value, without in (
                ("--exit-weighting", self.weighting, "uniform"),
                ("--exit-distillation", self.distillation, 0),
            ):
                if value != without:
                    raise UserError(
                        f"{option} {value} needs every exit on every token: leave it out, or give "
                        "--exit-training aligned"
                    )
        if options.halting_only and self.halting_weight == 0:
            raise UserError("--halting-only with --halting-weight 0 trains nothing: give a weight above 0")
        kind = "none" if decoder.halting is None else decoder.halting.kind
        if self.sigma > 0 and kind not in ("token", "geometric"):
            raise UserError(
                f"--halting-smoothing {self.sigma:g} is over neighbouring tokens, and has no effect with --halting "
                f"{kind}: leave it out, or give --halting token or geometric"
            )

    def all_exits(
        self, decoder: Decoder, states: list[Tensor], target: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of aligned training (equation 4), and what the oracle needs.

        Args:
            states: the outputs of the blocks, (B, T, D) each.
            target: (B, T) int64.
            real: (B, T), True where there is no padding.

        Returns:
            The loss, the log-likelihoods (N, B, T), and whether each exit predicts the token (N, B, T); both are 0 at
            padding.
        """
        losses, likelihoods, correct = self.cross_entropy(
            decoder, {n: state[real] for n, state in enumerate(states, start=1)}, target[real]
        )
        weights = losses.new_tensor(exit_weights(self.weighting, len(states)))
        shape = (len(states), *real.shape)
        return (
            (weights * losses).sum(),
            likelihoods.new_zeros(shape).masked_scatter(real, likelihoods),
            correct.new_zeros(shape).masked_scatter(real, correct),
        )

    def sampled_exits(
        self, decoder: Decoder, exits: Tensor, states: list[Tensor], target: Tensor, real: Tensor
    ) -> tuple[Tensor, list[Count]]:
        """The loss of mixed training (equation 5) for one sample of exits (B, T), and the counts of each exit.

        ``states`` are the outputs of the blocks, (B, T, D) each; ``target`` and ``real`` are (B, T).
        """
        losses, counts = [], []
        for n, state in enumerate(states, start=1):
            chosen = real & (exits == n)
            # The output of block n itself: the gradient of a copy in an upper block is scaled there.
            loss, likelihood, correct = self.cross_entropy(decoder, {n: state[chosen]}, target[chosen])
            losses.append(loss.sum())
            counts.append(Count(-likelihood.sum(), correct.sum(), likelihood.numel()))
        return torch.stack(losses).sum(), counts

    def cross_entropy(
        self, decoder: Decoder, states: dict[int, Tensor], target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result of :func:`linear_cross_entropy` for ``states``, outputs (M, D) of blocks by their number.

        ``target`` is (M,). The gradients are scaled as in appendix A.
        """
        losses, likelihoods, correct = linear_cross_entropy(
            [decoder.exit_features(n, state) for n, state in states.items()],
            [decoder.exit_projection(n).weight for n in states],
            target,
            smoothing=self.smoothing,
            distillation=self.distillation,
        )
        if decoder.gradient_scales is not None and decoder.training:
            losses = scale_gradient(losses, losses.new_tensor([decoder.gradient_scales[n - 1] for n in states]))
        return losses, likelihoods, correct

    def halting(
        self, decoder: Decoder, extra: dict[str, Any], likelihoods: Tensor, correct: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The halting loss (equation 6), summed over tokens, and the sum of the exits that the oracle chooses."""
        assert decoder.halting is not None
        scores = likelihoods if self.oracle == "likelihood" else correct.to(likelihoods.dtype)
        log_q = decoder.halting.log_distribution(extra["sentence"], extra["exit_states"])  # (N, B, T) or (N, B)
        if log_q.dim() == 2:
            best = sequence_oracle(scores, real, penalty=self.penalty)[:, None].expand_as(real)
            log_q = log_q[:, :, None].expand(-1, -1, real.size(1))
        else:
            best = token_oracle(scores, real, penalty=self.penalty, sigma=self.sigma)
        chosen = log_q.gather(0, (best - 1)[None])[0]  # (B, T)
        return -chosen[real].sum(), best[real].sum()

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log averages, losses in bits: the losses that are trained per sample, everything else per token."""

        bits = math.log(2)

        def mean(name: str, logged_as: str, count: str, unit: float, places: int) -> bool:
            """Log the average of a sum over ``count``, if that is not 0, and return whether it was logged."""
            logs = [log for log in logging_outputs if name in log]
            total = sum(log[count] for log in logs)
            if total > 0:
                metrics.log_scalar(logged_as, sum(log[name] for log in logs) / total / unit, total, round=places)
            return bool(total > 0)

        exits = sum(name.startswith("nll_") for name in set[str]().union(*logging_outputs))
        mean("loss", "loss", "sample_size", bits, 3)
        if mean(f"nll_{exits}", "nll_loss", f"tokens_{exits}", bits, 3):
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        mean("exits_loss", "exits_loss", "sample_size", bits, 3)
        mean("halting_loss", "halting_loss", "sample_size", bits, 3)
        mean("oracle_exit", "oracle_exit", "ntokens", 1, 3)
        for n in range(1, exits + 1):
            mean(f"nll_{n}", f"nll_{n}", f"tokens_{n}", bits, 3)
            mean(f"correct_{n}", f"accuracy_{n}", f"tokens_{n}", 0.01, 2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All logged values are sums."""
        return True
