"""Section "Exits": how many blocks of the decoder the tokens needed, and tokens coloured by their exits."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.section import Figure, Section, figure

SENTENCES = 10  # sentences whose tokens are coloured by their exits


@dataclass(frozen=True)
class ExitCounts:
    """How many tokens of a system took each exit."""

    system: SystemData
    policy: str
    mean: Figure
    mflops: Figure  # per token at full depth
    counts: list[Figure | None]  # tokens of each exit; None where the exit is unknown


@dataclass(frozen=True)
class Token:
    """A token after sub-word segmentation, without the mark of its beginning."""

    text: str
    begins_word: bool
    exit: int


@dataclass(frozen=True)
class DecodedTokens:
    """The translation of a sentence by a system."""

    system: SystemData
    tokens: list[Token]


@dataclass(frozen=True)
class SentenceWithExits:
    """The translations of a sentence by all systems with exits."""

    number: int
    decoded: list[DecodedTokens]


@dataclass(frozen=True, kw_only=True)
class ExitsSection(Section):
    """Counts by exit, of `blocks` exits, and some sentences with the exits of their tokens."""

    id: str = "exits"
    title: str = "Exits"
    template: str = "exits.html.jinja"
    blocks: int
    rows: list[ExitCounts]
    sentences: list[SentenceWithExits]


def exits_section(systems: Sequence[SystemData], order: Sequence[int]) -> ExitsSection | None:
    """None where no system has exits."""
    with_exits = [system for system in systems if system.exits is not None]
    if not with_exits:
        return None
    exits_of = {system.number: exits for system in with_exits if (exits := system.scores.exits) is not None}
    blocks = max(exits.blocks for exits in exits_of.values())
    rows = [
        ExitCounts(
            system,
            policy=exits.policy,
            mean=figure(exits.mean, origin="exits.mean"),
            mflops=figure(exits.mflops_per_token_full_depth, origin="exits.mflops_per_token_full_depth"),
            counts=[
                figure(exits.tokens.get(str(exit)), "{:,}", origin=f"exits.tokens.{exit}")
                for exit in range(1, blocks + 1)
            ],
        )
        for system in with_exits
        for exits in [exits_of[system.number]]
    ]
    sentences = [
        SentenceWithExits(index + 1, [DecodedTokens(system, _tokens(system, index)) for system in with_exits])
        for index in order[:SENTENCES]
    ]
    return ExitsSection(blocks=blocks, rows=rows, sentences=sentences)


def _tokens(system: SystemData, index: int) -> list[Token]:
    """The tokens of a sentence; ▁ begins a word, and so does the end of the sentence."""
    assert system.exits is not None
    line = system.exits[index]
    return [
        Token(token.replace("▁", " ").strip() or "▁", token.startswith("▁") or token == "</s>", exit)
        for token, exit in zip(line.tokens, line.exits, strict=True)
    ]
