"""What all sections of the page share: the base of their classes, and numbers with their full value."""

from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section as templates/page.html.jinja includes it: `template` is a file in templates/sections."""

    id: str  # the address in the page
    title: str
    template: str


@dataclass(frozen=True)
class Figure:
    """A number with its full `value`, the `text` to read and its `origin` in scores.json, such as bleu.score."""

    value: float
    text: str
    origin: str


@overload
def figure(value: float, form: str = ..., *, origin: str = ..., scale: float = ...) -> Figure: ...


@overload
def figure(value: float | None, form: str = ..., *, origin: str = ..., scale: float = ...) -> Figure | None: ...


def figure(value: float | None, form: str = "{:,.2f}", *, origin: str = "", scale: float = 1) -> Figure | None:
    """A figure whose text is `value` times `scale`, as `form` writes it; None for None."""
    return None if value is None else Figure(value, form.format(value * scale), origin)
