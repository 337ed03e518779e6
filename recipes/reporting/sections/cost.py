"""Section "Speed and cost": the size of the systems, the time of their training and decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.metrics import quality
from recipes.metrics import systems as comparing
from recipes.reporting.artifacts import SystemData
from recipes.reporting.sections.section import Figure, Section, figure


@dataclass(frozen=True)
class Cost:
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
    id: str = "cost"
    title: str = "Speed and cost"
    template: str = "cost.html.jinja"
    rows: list[Cost]
    ensembles: bool


def cost_section(systems: Sequence[SystemData]) -> CostSection:
    rows = [_cost(system) for system in systems]
    return CostSection(rows=rows, ensembles=any(system.scores.get("ensemble") for system in systems))


def _cost(system: SystemData) -> Cost:
    scores, exits = system.scores, system.scores.get("exits", {})
    updates = [
        figure(model.get("updates"), "{:,}", origin=f"ensemble.{place - 1}.updates" if place else "updates")
        for place, model in enumerate(quality.models(scores))
    ]
    known = [each for each in updates if each is not None]
    origin = "" if scores.get("ensemble") else "checkpoint_seconds"
    overrides = [f"{name} {value}" for name, value in scores.get("overrides", {}).items()]
    return Cost(
        system,
        parameters=figure(scores["parameters"], "{:,}", origin="parameters"),
        updates=known if len(known) == len(updates) else [],
        minutes=figure(quality.checkpoint_seconds(scores), "{:,.1f}", origin=origin, scale=1 / 60),
        seconds=figure(scores["seconds"], "{:,.1f}", origin="seconds"),
        speed=figure(scores["tokens_per_second"], "{:,.0f}", origin="tokens_per_second"),
        mean_exit=figure(exits.get("mean"), origin="exits.mean"),
        mflops=figure(exits.get("mflops_per_token"), origin="exits.mflops_per_token"),
        search="; ".join([comparing.search(system.system), *overrides]),
        device=scores["device"],
        threads=figure(scores["threads"], "{:,}", origin="threads"),
        batch=figure(scores["search"]["max-tokens"], "{:,}", origin="search.max-tokens"),
        truncated=figure(scores.get("truncated") or None, "{:,}", origin="truncated"),
    )
