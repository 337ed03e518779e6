"""Settings files in YAML: reading them, and checking every key against a declared schema.

A schema is a subclass of `Settings`. Whatever is wrong is a `UserError` of one line that names the file, the key, what
must stand there and what stands there.
"""

import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from recipes.storage.provenance import ROOT
from thoth_core.errors import UserError

RECIPES = ROOT / "recipes"
FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
INVALID = "invalid"  # the type of errors that a schema's own validators raise: PydanticCustomError(INVALID, message)


class Settings(BaseModel):
    """A block of keys. Unknown keys, other types and numbers that are not finite are refused.

    A field's description says what must stand there, as the end of "must be ..."; without one, its type says it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_assignment=True)

    @classmethod
    def checked(cls, document: Mapping[Any, Any], where: str) -> Self:
        """The settings in `document`, with defaults filled in; `where` begins the message of a UserError."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise UserError(f"{where}: {_first_problem(cls, error)}") from None

    def override(self, keys: tuple[str, ...], value: Any, option: str) -> None:
        """Set the value under the path `keys`, as the command-line option `option` requests."""
        block = self
        for key in keys[:-1]:
            block = getattr(block, key)
        try:
            setattr(block, keys[-1], value)
        except ValidationError as error:
            raise UserError(f"{option} {_problem(type(block), error.errors()[0])}") from None


# --- messages -----------------------------------------------------------------------------------------------


def shortened(value: Any) -> str:
    """`value` as the user wrote it in YAML, on one line and not too long."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("...\n").strip().replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."


def _first_problem(schema: type[Settings], error: ValidationError) -> str:
    """The message for one of the problems: an unknown key first, which may be a misspelt key that is missing."""
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] in ("extra_forbidden", "invalid_key")]
    if unknown:
        return _unknown_key(schema, unknown[0])
    key = "key " if problems[0]["type"] == "missing" else ""
    return f"{key}'{_Place.of(schema, problems[0]).name}' {_problem(schema, problems[0])}"


def _unknown_key(schema: type[Settings], problem: ErrorDetails) -> str:
    *path, key = map(str, problem["loc"])
    block = _block(_Place.at(schema, path).annotation)
    assert block is not None
    prefix = "".join(f"{name}." for name in path)
    near = get_close_matches(key, list(block.model_fields), n=1)
    guess = f" (did you mean '{prefix}{near[0]}'?)" if near else ""
    return f"unknown key '{prefix}{key}'{guess}; valid keys: {', '.join(block.model_fields)}"


def _problem(schema: type[Settings], problem: ErrorDetails) -> str:
    """What is wrong with a value, without the name of its key."""
    place, value = _Place.of(schema, problem), problem["input"]
    if problem["type"] == INVALID:
        return problem["msg"]
    if problem["type"] == "missing":
        return f"is missing; it must be {place.description}"
    if value is None:
        return f"must be {place.description}, but is left empty"
    texts = (member for member in (place.annotation, *get_args(place.annotation)) if isinstance(member, str | type))
    takes_text = any(member is str or isinstance(member, str) for member in texts)
    hint = ' (put it in quotes: "no" is read as false)' if isinstance(value, bool) and takes_text else ""
    return f"must be {place.description}, but is {shortened(value)}{hint}"


@dataclass(frozen=True)
class _Place:
    """A place in a settings file: its key with those around it, the type of its value, and what must stand there."""

    name: str
    annotation: Any
    description: str

    @classmethod
    def of(cls, schema: type[Settings], problem: ErrorDetails) -> Self:
        return cls.at(schema, problem["loc"])

    @classmethod
    def at(cls, schema: type[Settings], location: Iterable[str | int]) -> Self:
        """The place at pydantic's `location`, whose end may be an item of a list or a member of a union."""
        names: list[str] = []
        annotation: Any = schema
        description = ""
        key_type: Any = None
        for part in map(str, location):
            block = _block(annotation)
            if block is not None and part in block.model_fields:
                field = block.model_fields[part]
                annotation = field.annotation
                description = field.description or _described(annotation, field.metadata)
            elif get_origin(annotation) is dict:
                key_type, annotation = get_args(annotation)
                description = _described(annotation)
            elif part == "[key]":
                description = _described(key_type)
                break
            else:
                break
            names.append(part)
        return cls(".".join(names), annotation, description)


def _block(annotation: Any) -> type[Settings] | None:
    """The schema of a block of keys, also of one that may be absent; None for other values."""
    optional = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    for candidate in (annotation, *optional):
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            return candidate
    return None


def _described(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value of this type must be: the description that it is annotated with, or else its type and range."""
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        for rule in metadata:
            if isinstance(rule, FieldInfo) and rule.description:
                return rule.description
    if (block := _block(annotation)) is not None:
        return "a block with the keys " + ", ".join(block.model_fields)
    bounds = {name: getattr(rule, name) for rule in metadata for name in ("ge", "le") if hasattr(rule, name)}
    kind = _type_name(annotation)
    if "le" in bounds:
        return f"{kind} from {bounds['ge']:g} to {bounds['le']:g}"
    return f"{kind} of at least {bounds['ge']:g}" if "ge" in bounds else kind


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(shortened, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        members = get_args(annotation)
        return " or ".join(_type_name(member) for member in members if not (member is int and float in members))
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
    return names.get(annotation, "a list")


# --- files --------------------------------------------------------------------------------------------------


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently lets the last of two equal keys win; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file `path`."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a readable .yaml file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: is not valid YAML ({problem}); correct that line") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: must contain keys and values (description: ...), but is {shortened(document)}")
    return document


def find(kind: Literal["corpus", "model"], name: str) -> Path:
    """The file of the corpus or model `name`: the stem of a file of ours, or the path of a .yaml file."""
    folder = RECIPES / ("corpora" if kind == "corpus" else "models")
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such {kind} file; give an existing .yaml file or one of: {_known(folder)}")
        return path
    path = folder / f"{name}.yaml"
    if not re.fullmatch(FOLDER_NAME, name) or not path.is_file():
        raise UserError(f"unknown {kind} '{name}'; known: {_known(folder)}; or give the path of a .yaml file")
    return path


def _known(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
