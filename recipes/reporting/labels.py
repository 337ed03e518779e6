"""Short labels by which readers tell systems apart."""

from collections.abc import Sequence
from pathlib import Path

from recipes.metrics.systems import System


def labels(systems: Sequence[System]) -> list[str]:
    """For each system the parts of its path that not all of them share, or its whole path where these are equal."""
    parts = [Path(system.name).parts for system in systems]
    common = set(parts[0]).intersection(*parts[1:])
    short = ["/".join(part for part in mine if part not in common) for mine in parts]
    named = [name or system.scores.model for name, system in zip(short, systems, strict=True)]
    return named if len(set(named)) == len(named) else [system.name for system in systems]
