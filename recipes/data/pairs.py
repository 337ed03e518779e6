"""Sentence pairs as they are read: plain lines of both languages, checked, with the places that they come from."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from thoth_core.errors import UserError

HUGE_LINE = 100_000  # characters; no sentence is that long, but a file with other line ends can be one line
_BROKEN = re.compile("[\0\ud800-\udfff]")  # JSON can write both as escapes


@dataclass(frozen=True)
class Pairs:
    """The raw sentence pairs of one split."""

    source: list[str]
    target: list[str]
    origins: tuple[str, str]  # what to call each side in messages: a file, or a file and its column
    documents: list[str] | None = None  # the document id of each pair, where documents are known


def refuse_huge(lines: Iterable[str], origin: str) -> None:
    """Raise a UserError that names the first line which is too long to be a sentence."""
    for number, line in enumerate(lines, 1):
        if len(line) > HUGE_LINE:
            raise UserError(
                f"{origin}, line {number}: has {len(line):,} characters; give one sentence per line "
                f"(at most {HUGE_LINE:,} characters, lines ending in \\n)"
            )


def pairs_of_rows(rows: Sequence[tuple[str, str]], origin: str, columns: Sequence[str]) -> Pairs:
    """The sentence pairs of a table, whose rows are (source, target)."""
    if not rows:
        raise UserError(f"{origin}: contains no row; give one sentence pair per row")
    source, target = [row[0] for row in rows], [row[1] for row in rows]
    for lines in (source, target):
        refuse_huge(lines, origin)
    return Pairs(source, target, (f"{origin}, column {columns[0]}", f"{origin}, column {columns[1]}"))


def pair_of(record: Any, columns: Sequence[str], where: str) -> tuple[str, str]:
    """The texts of `columns` in `record`, or in its record "translation"; a line break in them is a space."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: is not an object with the columns {columns[0]} and {columns[1]}")
    inner = record.get("translation")
    fields = inner if isinstance(inner, dict) and columns[0] not in record else record
    for column in columns:
        if column not in fields:
            raise UserError(no_such_columns(where, columns, list(fields)))
        text = fields[column]
        if not isinstance(text, str):
            raise UserError(f"{where}: column {column} must be text, but is {json.dumps(text, default=str)[:40]}")
        if _BROKEN.search(text):
            raise UserError(f"{where}: column {column} contains a NUL or half a surrogate pair; correct that text")
    source, target = (re.sub(r"[\r\n]+", " ", fields[column]) for column in columns)
    return source, target


def stored_columns(columns: Sequence[str], present: Sequence[str], origin: str) -> list[str]:
    """The columns of a table to read: `columns`, or the column "translation" whose records have them.

    Raises:
        UserError: the table, whose columns are `present`, has neither.
    """
    for names in (list(columns), ["translation"]):
        if set(names) <= set(present):
            return names
    raise UserError(no_such_columns(origin, columns, present))


def no_such_columns(where: str, columns: Sequence[str], present: Sequence[str]) -> str:
    """The message for a table that has the columns `present` instead of `columns`."""
    others = ", ".join(map(str, present)) or "none"
    return (
        f"{where}: has no columns {columns[0]} and {columns[1]}, but {others}; name them with --columns SOURCE,TARGET"
    )
