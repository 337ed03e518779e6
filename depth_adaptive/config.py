"""Options of ``depth_adaptive_transformer``, their checks, and the policies that they name.

Every field becomes a command-line flag (``exit_policy`` → ``--exit-policy``) and a Hydra key (``model.exit_policy``).
fairseq evaluates the annotations, so they must be real types and not strings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from depth_adaptive.halting import (
    HALTINGS,
    POLICIES,
    ConfidencePolicy,
    FixedPolicy,
    Halting,
    HaltingPolicy,
    Policy,
    RandomPolicy,
)
from thoth_core.errors import UserError

TRAININGS = ("aligned", "mixed")
PROJECTIONS = ("shared", "separate")
COPIES = ("deferred", "eager")
CHOICES = {
    "exit_projections": PROJECTIONS,
    "exit_training": TRAININGS,
    "halting": HALTINGS,
    "exit_policy": POLICIES,
    "exit_copies": COPIES,
}


@dataclass
class DepthOptions(FairseqDataclass):
    """Options of the exits, of their training, and of the choice of exits in decoding."""

    exit_projections: ChoiceEnum(PROJECTIONS) = field(  # type: ignore[valid-type]
        default="shared",
        metadata={
            "help": "output projections of the exits: the last block's for all, or a separate one for each, not tied "
            "to an embedding"
        },
    )
    exit_training: ChoiceEnum(TRAININGS) = field(  # type: ignore[valid-type]
        default="aligned",
        metadata={
            "help": "train all exits on every token (aligned), or sampled exits with copied states above them (mixed)"
        },
    )
    exit_samples: int = field(default=1, metadata={"help": "sampled sequences of exits per batch in mixed training"})
    exit_gradient_scale: Optional[float] = field(
        default=None,
        metadata={
            "help": "scale the gradient of exit n of N by this number times N - n + 1; by default it is not scaled"
        },
    )
    halting: ChoiceEnum(HALTINGS) = field(  # type: ignore[valid-type]
        default="none",
        metadata={
            "help": "module that learns to choose exits: from the mean encoder output (sequence), from the first "
            "block's output (token), or after every block (geometric)"
        },
    )
    halting_only: bool = field(
        default=False,
        metadata={"help": "train only the halting module of a loaded model; all other weights are frozen"},
    )
    exit_policy: ChoiceEnum(POLICIES) = field(  # type: ignore[valid-type]
        default="full", metadata={"help": "choice of exits in decoding; full always runs all blocks"}
    )
    exit_layer: Optional[int] = field(default=None, metadata={"help": "exit of the policy fixed, from 1"})
    exit_threshold: Optional[str] = field(
        default=None,
        metadata={
            "help": "threshold of the policies confidence and, with geometric halting, halting: one number from 0 to "
            "1, or one for each block but the last, as in 0.9,0.8 (default 0.5)"
        },
    )
    exit_distribution: Optional[str] = field(
        default=None,
        metadata={"help": "weights of the exits for the policy random, as in 3,1,1,1,1,1 (default: equal weights)"},
    )
    exit_temperature: Optional[str] = field(
        default=None,
        metadata={
            "help": "temperature that divides the logits of the exits in decoding, except with the policy full: one "
            "number, or one for each block, as in 1.2,1.1 (default 1)"
        },
    )
    exit_copies: ChoiceEnum(COPIES) = field(  # type: ignore[valid-type]
        default="deferred",
        metadata={
            "help": "when decoding computes keys and values of copied states in upper blocks: once a token needs them "
            "(deferred), or at once (eager)"
        },
    )


# The options in which each architecture differs from fairseq's `transformer` and from the defaults above.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Section 5.1 of the paper.
    "depth_adaptive_transformer_iwslt_de_en": dict(
        encoder_embed_dim=512,
        encoder_ffn_embed_dim=1024,
        encoder_attention_heads=4,
        decoder_embed_dim=256,
        decoder_ffn_embed_dim=1024,
        decoder_attention_heads=4,
        exit_projections="separate",
    ),
    # Small enough to train on a CPU.
    "depth_adaptive_transformer_small": dict(
        encoder_embed_dim=256,
        encoder_ffn_embed_dim=512,
        encoder_layers=3,
        encoder_attention_heads=4,
        decoder_embed_dim=256,
        decoder_ffn_embed_dim=512,
        decoder_layers=6,
        decoder_attention_heads=4,
    ),
}


def options_of(args: Any) -> DepthOptions:
    """The options of a namespace or configuration; absent ones have their defaults."""
    known = DepthOptions()
    return DepthOptions(**{f.name: getattr(args, f.name, getattr(known, f.name)) for f in fields(known) if f.init})


# Options of fairseq that do not work with exits: they leave out blocks or build blocks of another kind, remove the
# output projection, replace layers whose weights the exits read, or treat parameters as unused that only the criterion
# uses.
REFUSED = (
    "decoder_layerdrop",
    "decoder_layers_to_keep",
    "base_layers",
    "adaptive_softmax_cutoff",
    "quant_noise_scalar",
    "find_unused_parameters",
)


def check(options: DepthOptions, fairseq_options: Any, *, exits: int) -> None:
    """Raise a UserError for an option out of range, or options that exclude each other or some of fairseq's."""
    # The command line checks choices and types; --model-overrides takes anything.
    for name, valid in CHOICES.items():
        if (value := getattr(options, name)) not in valid:
            raise UserError(f"{_flag(name)} must be one of {', '.join(valid)}, given {value!r}")
    for name, kind in (("exit_samples", int), ("exit_layer", int), ("exit_gradient_scale", (int, float))):
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            rule = "a whole number" if kind is int else "a number"
            raise UserError(f"{_flag(name)} must be {rule}, given {value!r}")
    if options.exit_samples < 1:
        raise UserError(f"--exit-samples must be at least 1, given {options.exit_samples}")
    scale = options.exit_gradient_scale
    if scale is not None and not 0 < scale < float("inf"):
        raise UserError(f"--exit-gradient-scale must be above 0, given {scale:g}")
    if options.halting_only and options.halting == "none":
        raise UserError(f"--halting-only needs --halting: one of {', '.join(HALTINGS[1:])}")
    for name in REFUSED:
        if getattr(fairseq_options, name, None):
            raise UserError(f"{_flag(name)} does not work with exits: leave it out")
    if fairseq_options.cross_self_attention and options.exit_policy != "full":
        raise UserError("--cross-self-attention works with --exit-policy full only: leave one of them out")
    if options.exit_policy == "fixed" and options.exit_layer is None:
        raise UserError(f"--exit-policy fixed needs --exit-layer: from 1 to {exits}")
    if options.exit_layer is not None and not 1 <= options.exit_layer <= exits:
        raise UserError(f"--exit-layer must be from 1 to {exits}, the decoder's blocks, given {options.exit_layer}")
    if options.exit_policy == "halting" and options.halting == "none":
        raise UserError(
            "--exit-policy halting needs a model that was trained with --halting; policies of this model: "
            + ", ".join(POLICIES[:-1])
        )
    if options.exit_policy == "halting" and options.halting != "geometric" and options.exit_threshold is not None:
        raise UserError(
            f"--exit-threshold has no effect on --exit-policy halting with --halting {options.halting}: leave it out "
            "(as an override: exit_threshold=None)"
        )


def build_policy(options: DepthOptions, *, exits: int, halting: Halting | None) -> Policy | None:
    """The policy that ``options`` name; None for full depth.

    Raises:
        UserError: thresholds or weights out of range, or too few or many of them.
    """
    thresholds = numbers("--exit-threshold", options.exit_threshold) or [0.5]
    weights = numbers("--exit-distribution", options.exit_distribution) or None
    # Built for every policy, so that wrong options are reported before a training and not after it.
    confidence = _build("--exit-threshold", lambda: ConfidencePolicy(exits=exits, thresholds=thresholds))
    random = _build("--exit-distribution", lambda: RandomPolicy(exits=exits, weights=weights))
    if options.exit_policy == "fixed":
        assert options.exit_layer is not None
        return FixedPolicy(exits=exits, exit=options.exit_layer)
    if options.exit_policy == "halting":
        assert halting is not None
        return HaltingPolicy(exits=exits, halting=halting, thresholds=thresholds)
    return {"random": random, "confidence": confidence}.get(options.exit_policy)


def temperatures(options: DepthOptions, *, exits: int) -> list[float] | None:
    """The temperature of each exit, by which its logits are divided; None if they are not.

    Raises:
        UserError: a temperature that is not above 0, or too few or many of them.
    """
    values = numbers("--exit-temperature", options.exit_temperature)
    if len(values) not in (0, 1, exits):
        raise UserError(f"--exit-temperature must be one number, or {exits}, one for each block, given {len(values)}")
    for value in values:
        if not 0 < value < float("inf"):
            raise UserError(f"--exit-temperature must be above 0, given {value:g}")
    return values * exits if len(values) == 1 else values or None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _build(option: str, build: Callable[[], Policy]) -> Policy:
    """The policy; a ValueError becomes a UserError that names the option."""
    try:
        return build()
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def numbers(option: str, value: Any) -> list[float]:
    """The numbers in the value of an option: a string such as "0.9,0.8", a number, or a list; none for None.

    Raises:
        UserError: the value is something else.
    """
    if value is None:
        return []
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError):
        raise UserError(f"{option} must be numbers with commas between them, as in 0.9,0.8, given {value!r}") from None
