"""Section "Speed and cost": the size of the systems, the time of their training and decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.section import Figure, Section, figure


@dataclass(frozen=True)
class CostRow:
    """What a system took to train and to decode the test set."""

    system: SystemData
    parameters: Figure
    updates: list[Figure]  # one of each model of an ensemble; empty if that of one is not known
    minutes: Figure | None  # of training to the checkpoint
    seconds: Figure
    speed: Figure  # tokens per second
    mean_exit: Figure | None
    mflops: Figure | None  # per token
    search: str
    device: str
    threads: Figure
    batch: Figure  # tokens
    truncated: Figure | None  # sentences whose source was cut; None without any


@dataclass(frozen=True, kw_only=True)
class CostSection(Section):
    """A row for each system; `ensembles` says whether one of them is an ensemble."""

    id: str = "cost"
    title: str = "Speed and cost"
    template: str = "cost.html.jinja"
    rows: list[CostRow]
    ensembles: bool


def cost_section(systems: Sequence[SystemData]) -> CostSection:
    """The section for all systems."""
    rows = [_cost(system) for system in systems]
    return CostSection(rows=rows, ensembles=any(system.scores.ensemble for system in systems))


def _cost(system: SystemData) -> CostRow:
    scores, exits = system.scores, system.scores.exits
    updates = [
        figure(model.updates, "{:,}", origin=f"ensemble.{place - 1}.updates" if place else "updates")
        for place, model in enumerate(scores.models)
    ]
    known = [each for each in updates if each is not None]
    origin = "" if scores.ensemble else "checkpoint_seconds"
    return CostRow(
        system,
        parameters=figure(scores.parameters, "{:,}", origin="parameters"),
        updates=known if len(known) == len(updates) else [],
        minutes=figure(scores.seconds_of_training, "{:,.1f}", origin=origin, scale=1 / 60),
        seconds=figure(scores.seconds, "{:,.1f}", origin="seconds"),
        speed=figure(scores.tokens_per_second, "{:,.0f}", origin="tokens_per_second"),
        mean_exit=figure(None if exits is None else exits.mean, origin="exits.mean"),
        mflops=figure(None if exits is None else exits.mflops_per_token, origin="exits.mflops_per_token"),
        search=scores.searched_with,
        device=scores.device,
        threads=figure(scores.threads, "{:,}", origin="threads"),
        batch=figure(scores.search.max_tokens, "{:,}", origin="search.max-tokens"),
        truncated=figure(scores.truncated or None, "{:,}", origin="truncated"),
    )
