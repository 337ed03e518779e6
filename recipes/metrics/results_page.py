"""docs/scores.md, the description of scores.json, from its schema: `python -m recipes.metrics.results_page`."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue

from recipes.metrics import results
from recipes.metrics.markdown import row, rule
from recipes.storage.provenance import ROOT
from recipes.storage.records import DocumentedRecord

PATH = ROOT / "docs" / "scores.md"

HEAD = f"""\
# scores.json

The file holds the results of an evaluation with everything that they were measured with. `recipes/evaluate.sh` and
`recipes/score.sh --update` write it; `recipes/score.sh`, `recipes/compare.sh`, `recipes/exits.sh` and
`recipes/report.sh` read it, and refuse a file that breaks this schema, with the field and the remedy.

This page is generated from `recipes/metrics/results.py`: `python -m recipes.metrics.results_page`.

In Python, `recipes.metrics.results.read(path)` returns the results as an object with these fields. On a command line:

    jq '.bleu.score, .bleu.signature' runs/quickstart/pervasive_quickstart/evaluation/scores.json

The number of the schema is {results.SCHEMA}. It rises when a field is removed or changes its meaning. Files without a
number are older than the schema; they are read as well.
"""

NAMES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    JsonValue: "any value",
}


def page() -> str:
    """The content of docs/scores.md."""
    common = set(results.Scores.model_fields)
    sections: list[tuple[str, type[BaseModel], set[str]]] = [
        ("All results", results.Scores, set()),
        ("Translation models", results.TranslationScores, common),
        ("Language models", results.LanguageModelScores, common),
    ]
    sections += [(_heading(block), block, set()) for block in _blocks()]
    return "\n".join([HEAD, *("\n".join(_section(*section)) for section in sections)])


def _section(heading: str, model: type[BaseModel], left_out: set[str]) -> list[str]:
    """A heading, the model's docstring and a table of its fields, but for those `left_out`."""
    lines = [f"## {heading}", "", (model.__doc__ or "").strip(), "", row("field", "type", "meaning"), rule(3)]
    for name, field in model.model_fields.items():
        if name not in left_out:
            lines.append(row(f"`{field.alias or name}`", _type(field.annotation), field.description or ""))
    return [*lines, ""]


def _blocks() -> list[type[DocumentedRecord]]:
    """The blocks that the results contain, in the order in which they occur."""
    blocks: dict[type[DocumentedRecord], None] = {}
    waiting: list[type[BaseModel]] = [results.Scores, results.TranslationScores, results.LanguageModelScores]
    while waiting:
        for field in waiting.pop(0).model_fields.values():
            for block in _blocks_in(field.annotation):
                if block not in blocks:
                    blocks[block] = None
                    waiting.append(block)
    return list(blocks)


def _blocks_in(annotation: Any) -> Iterator[type[DocumentedRecord]]:
    if isinstance(annotation, type) and issubclass(annotation, DocumentedRecord):
        yield annotation
    for argument in get_args(annotation):
        yield from _blocks_in(argument)


def _heading(block: type[BaseModel]) -> str:
    """The class's name as words: "Slot usage"."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in block.__name__).strip()
    return words[0].upper() + words[1:]


def _type(annotation: Any) -> str:
    """The type of a field in JSON's terms, with links to blocks."""
    if annotation in NAMES:
        return NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin is Literal:
        return " or ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of: {_type(arguments[0])}"
    if origin is dict:
        return f"object of: {_type(arguments[1])}"
    heading = _heading(annotation)
    return f"[{heading.lower()}](#{heading.lower().replace(' ', '-')})"


def main(path: Path = PATH) -> None:
    """Write the page."""
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
