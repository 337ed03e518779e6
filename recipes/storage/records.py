"""Files on disk with a declared schema.

Each format that we write is one subclass of `Record`, which its writers and its readers share.
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from recipes.storage import disk
from thoth_core.errors import UserError


class Record(BaseModel):
    """A JSON object with fixed fields. Unknown fields, other types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @classmethod
    def read(cls, path: Path, *, remedy: str) -> Self:
        """The record in the file `path`.

        Raises:
            UserError: the file is missing, cannot be read or breaks the schema. The message names the file, the first
                wrong field and `remedy`.
        """
        content = _content(path, remedy)
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise UserError(f"{path}: {first_problem(error)}; {remedy}") from None

    @classmethod
    def read_lines(cls, path: Path, *, remedy: str) -> list[Self]:
        """The records in the file `path`, which has one JSON object per line.

        Raises:
            UserError: as `read`; the message names the line too.
        """
        records = []
        content = _content(path, remedy)
        for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], 1):
            try:
                records.append(cls.model_validate_json(line))
            except ValidationError as error:
                raise UserError(f"{path}: line {number}: {first_problem(error)}; {remedy}") from None
        return records

    def line(self) -> str:
        """The record as one line of JSON, without the end of line."""
        return self.model_dump_json(by_alias=True)

    def write(self, path: Path) -> None:
        """Write the record to `path` as indented JSON, atomically."""
        disk.write_atomically(path, self.model_dump_json(indent=2, by_alias=True) + "\n")


class DocumentedRecord(Record):
    """A record whose fields are described by the strings below them, and are written by their aliases."""

    model_config = ConfigDict(use_attribute_docstrings=True, serialize_by_alias=True, validate_by_name=True)


def _content(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None


def first_problem(error: ValidationError) -> str:
    """The first of a validation's errors on one line: the field, then what is wrong with it."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return "not JSON"
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"field {field} is missing"
    if first["type"] == "extra_forbidden":
        return f"unknown field {field}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"field {field}: {message}" if field else message
