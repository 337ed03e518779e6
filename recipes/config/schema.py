"""Corpus and model files: small YAML files whose every key is checked before anything is done.

`load_corpus` and `load_model` take a name (of a file in recipes/corpora or recipes/models) or the path of a
.yaml file. Anything wrong is a `UserError` of one line that names the file, the key and what is valid
there.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from recipes.storage.provenance import ROOT
from thoth_core.errors import UserError

RECIPES = Path(__file__).resolve().parent.parent
LANGUAGE = r"[a-z]{2,3}(_[A-Za-z0-9]+)?"  # no dash: fairseq splits the pair "de-en" at it
FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
REQUIRED: Any = object()


@dataclass(frozen=True)
class Value:
    """What one key may hold. `minimum` and `maximum` are inclusive; `pattern` must match the whole text."""

    kind: type | tuple[type, ...]
    default: Any = REQUIRED
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    hint: str = ""

    def wrong(self, value: Any) -> str | None:
        """What is wrong with `value`, or None."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        if value is None and type(None) not in kinds:
            return f"must be {self.describe()}, but is left empty"
        # In Python True is an int and 3 is no float; in a file of settings neither is what is meant.
        fits = any(type(value) is kind for kind in kinds) or (type(value) is int and float in kinds)
        if not fits:
            hint = ' (put it in quotes: "no" is read as false)' if isinstance(value, bool) and str in kinds else ""
            return f"must be {self.describe()}, but is {shown(value)}{hint}"
        if self.choices and value not in self.choices:
            return f"must be {self.describe()}, but is {shown(value)}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                return f"must be {self.describe()}, but is {shown(value)}"
            too_low = self.minimum is not None and not value >= self.minimum
            if too_low or (self.maximum is not None and not value <= self.maximum):
                return f"must be {self.describe()}, but is {shown(value)}"
        if isinstance(value, str) and self.pattern and not re.fullmatch(self.pattern, value):
            return f"must be {self.describe()}, but is {shown(value)}"
        return None

    def describe(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(shown, self.choices))
        if self.hint:
            return self.hint
        names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list",
                 dict: "a block of keys", type(None): "null"}  # fmt: skip
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        described = " or ".join(names[kind] for kind in kinds)
        if self.minimum is not None and self.maximum is not None:
            described += f" from {self.minimum:g} to {self.maximum:g}"
        elif self.minimum is not None:
            described += f" of at least {self.minimum:g}"
        return described


Schema = Mapping[str, "Value | Schema"]


def shown(value: Any) -> str:
    """`value` as the user wrote it in YAML, on one line and not too long."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("...\n").strip().replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently lets the last of two equal keys win; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that the file `path` holds."""
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
        raise UserError(f"{path}{where}: is not valid YAML ({problem}); mend that line") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: must hold keys and values (description: ...), but is {shown(document)}")
    return document


def check_written(value: Any, kind: Any, where: str, again: str, name: str = "") -> None:
    """Raise a UserError, with the remedy `again`, unless what a recipe has written, and others may have changed, is of
    its `kind`: a `Value`, a mapping of kinds by key (other keys are free), or a list of the one kind of its items."""
    wrong = kind.wrong(value) if isinstance(kind, Value) else None
    if wrong or (not isinstance(kind, Value) and not isinstance(value, type(kind))):
        raise UserError(f"{where}: {name or 'all'} {wrong or 'is damaged'}; {again}")
    if isinstance(kind, dict):
        for part, its in kind.items():
            check_written(value.get(part), its, where, again, f"{name}.{part}".lstrip("."))
    elif isinstance(kind, list) and kind:
        for place, item in enumerate(value):
            check_written(item, kind[0], where, again, f"{name}.{place}")


def checked(document: Mapping[Any, Any], schema: Schema, where: str) -> dict[str, Any]:
    """`document` with defaults filled in, or `UserError` naming `where` and the first key that is wrong.

    A nested schema that is absent from the document is filled with its own defaults.
    """
    return _checked(document, schema, where, "")


def _checked(document: Mapping[Any, Any], schema: Schema, where: str, prefix: str) -> dict[str, Any]:
    for key in document:
        if key not in schema:
            raise UserError(f"{where}: unknown key '{prefix}{key}'{_did_you_mean(str(key), schema, prefix)}")
    result: dict[str, Any] = {}
    for key, rule in schema.items():
        name = prefix + key
        if isinstance(rule, Value):
            if key not in document:
                if rule.default is REQUIRED:
                    raise UserError(f"{where}: key '{name}' is missing; it must be {rule.describe()}")
                result[key] = rule.default
                continue
            problem = rule.wrong(document[key])
            if problem:
                raise UserError(f"{where}: '{name}' {problem}")
            result[key] = document[key]
        else:
            block = document.get(key, {})
            if not isinstance(block, dict):
                raise UserError(f"{where}: '{name}' must be a block of keys, but is {shown(block)}")
            result[key] = _checked(block, rule, where, name + ".")
    return result


def _did_you_mean(key: str, valid: Mapping[str, Any], prefix: str) -> str:
    near = get_close_matches(key, list(valid), n=1)
    guess = f" (did you mean '{prefix}{near[0]}'?)" if near else ""
    return f"{guess}; valid keys: {', '.join(valid)}"


def find(kind: str, name: str) -> Path:
    """The file of the corpus or model (`kind`) that `name`, a file's stem or a path, means."""
    folder = RECIPES / ("corpora" if kind == "corpus" else "models")
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such {kind} file; give an existing .yaml file or one of: {_names(folder)}")
        return path
    path = folder / f"{name}.yaml"
    if not re.fullmatch(FOLDER_NAME, name) or not path.is_file():
        raise UserError(f"unknown {kind} '{name}'; known: {_names(folder)}; or give the path of a .yaml file")
    return path


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"


# --- corpora ------------------------------------------------------------------------------------------------

_LANGUAGE = Value((str, type(None)), None, pattern=LANGUAGE, hint="a language code such as de, en or zh_Hans")

CORPUS: Schema = {
    "description": Value(str),
    "like": Value((str, type(None)), None),  # another corpus, whose keys hold where this file has none
    "source": _LANGUAGE,  # null: to be given by --source and --target
    "target": _LANGUAGE,
    "reader": Value(str, choices=("files", "hub", "quickstart", "wit3")),
    "preparation": Value(str, "sentencepiece", choices=("sentencepiece", "paper")),
    # Below the folder given by --from, or anywhere: a prefix (PREFIX.LANG, PREFIX.LANG.gz) or one table file.
    "files": {
        "train": Value((str, type(None)), None, pattern=r".*\S.*", hint="a prefix or file"),
        "valid": Value((str, type(None)), None, pattern=r".*\S.*", hint="a prefix or file"),
        "test": Value((str, list, type(None)), None, hint="a prefix or file, or a list of them"),
        "columns": Value((list, type(None)), None, hint="null or two column names, [SOURCE, TARGET]"),
    },
    "hub": {
        "name": Value((str, type(None)), None, hint="the data set's name on the hub (user/name)"),
        "configuration": Value((str, type(None)), None),
        "folder": Value((str, type(None)), None),  # of the data set, which then has no configurations
        "revision": Value(str, "main"),
        "train": Value(str, "train"),
        "valid": Value(str, "validation"),
        "test": Value((str, list), "test", hint="a split or a list of splits"),
        "columns": Value((list, type(None)), None, hint="null or two column names, [SOURCE, TARGET]"),
    },
    # IWSLT's archives. A set is a file's name before .PAIR.LANG.xml; "A + B" puts two together.
    "wit3": {
        "pair": Value((str, type(None)), None, pattern=r"[a-z]{2,3}-[a-z]{2,3}", hint="a pair as in de-en"),
        "url": Value((str, type(None)), None, pattern=r"https?://\S+", hint="an https address"),
        "sha256": Value((str, type(None)), None, pattern=r"[0-9a-f]{64}", hint="64 hexadecimal digits"),
        "valid": Value((str, type(None)), None, pattern=r".*\S.*", hint="a set, or sets joined by +"),
        "test": Value(list, [], hint="a list of sets"),
    },
    # every: N takes every Nth pair of the cleaned training text as validation set; no other is then read.
    "valid": {"every": Value((int, type(None)), None, minimum=2)},
    "quickstart": {
        "seed": Value(int, 1, minimum=0),
        "train": Value(int, 20000, minimum=1, maximum=10**7),
        "valid": Value(int, 1000, minimum=1, maximum=10**6),
        "test": Value(int, 1000, minimum=1, maximum=10**6),
    },
    "subwords": {
        "vocab_size": Value(int, minimum=10, maximum=500_000),
        "joint": Value(bool, True),
        "model": Value(str, "bpe", choices=("bpe", "unigram")),
        "character_coverage": Value(float, 1.0, minimum=0.9, maximum=1.0),
        "split_digits": Value(bool, False),
    },
    "clean": {
        "unit": Value(str, "words", choices=("words", "characters")),
        "max_length": Value(int, 200, minimum=1, maximum=100_000),
        "max_ratio": Value((float, type(None)), 3.0, minimum=1.0, maximum=1000.0),
        "duplicates": Value(str, "drop", choices=("drop", "keep")),
        "identical": Value(str, "drop", choices=("drop", "keep")),
        "empty_evaluation_lines": Value(str, "error", choices=("error", "keep")),
        "language_check": Value(bool, True),
    },
}


# `preparation: paper`: the settings of fairseq's prepare-iwslt14.sh. Lengths are in tokens, cleaning as by Moses'
# clean-corpus-n.perl.
PAPER: Schema = {
    **CORPUS,
    "subwords": {
        "lowercase": Value(bool, True),
        "operations": Value(int, 10_000, minimum=1, maximum=500_000),
        "joint": Value(bool, True),
        "dictionary": Value(str, "joined", choices=("joined", "separate")),
        "vocabulary_threshold": Value((int, type(None)), None, minimum=1),
    },
    "clean": {
        "max_length": Value(int, 175, minimum=1, maximum=100_000),
        "max_ratio": Value((float, type(None)), 1.5, minimum=1.0, maximum=1000.0),
        "max_word_length": Value((int, type(None)), 1000, minimum=1),
        "duplicates": Value(str, "keep", choices=("drop", "keep")),
        "identical": Value(str, "keep", choices=("drop", "keep")),
        "empty_evaluation_lines": Value(str, "error", choices=("error", "keep")),
        "language_check": Value(bool, True),
    },
}


def corpus_schema(preparation: Any) -> Schema:
    """The keys of a corpus file with that `preparation`."""
    return PAPER if preparation == "paper" else CORPUS


def load_corpus(name: str) -> tuple[Path, dict[str, Any]]:
    """The corpus file that `name` means, and its settings with defaults filled in (schema: `corpus_schema`)."""
    path = find("corpus", name)
    document = _like(path, ())
    return path, checked(document, corpus_schema(document.get("preparation")), str(path))


def _like(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """What the file `path` holds, over what the corpus holds that its key `like` names."""
    document = read_yaml(path)
    other = document.pop("like", None)
    if other is None:
        return document
    if not isinstance(other, str) or path in before:
        raise UserError(
            f"{path}: 'like' must name another corpus, one that is not like this one, but is {shown(other)}"
        )
    beside = str(path.parent / other) if other.endswith((".yaml", ".yml")) else other
    base = _like(find("corpus", beside), (*before, path))
    if document.get("preparation", base.get("preparation")) != base.get("preparation"):
        base = {key: value for key, value in base.items() if key not in ("subwords", "clean")}  # they have other keys
    return _over(document, base)


def _over(document: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `document` in their place, block by block."""
    both = {
        key: _over(value, base[key]) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in document.items()
    }
    return base | both


# --- models -------------------------------------------------------------------------------------------------

Option = str | int | float | bool | None


@dataclass(frozen=True)
class ModelFile:
    """One recipes/models/NAME.yaml. `train` and `generate` are command-line options without the dashes:

    true stands for a bare flag, false and null for an absent option.
    """

    name: str
    path: Path
    description: str
    user_dir: str | None
    train: dict[str, Option]
    generate: dict[str, Option]
    corpora: dict[str, dict[str, dict[str, Option]]] = field(default_factory=dict)

    def options(self, block: str, corpus: str) -> dict[str, Option]:
        """The options of `block` ("train" or "generate"), with what the file overrides for `corpus`."""
        own: dict[str, Option] = getattr(self, block)
        return own | self.corpora.get(corpus, {}).get(block, {})


_OPTIONS = Value(dict, {}, hint="a block of options without dashes in front")
MODEL: Schema = {
    "description": Value(str),
    "user_dir": Value((str, type(None)), None),
    "train": Value(dict, hint="a block of fairseq-train options without dashes in front"),
    "generate": _OPTIONS,
    "corpora": Value(dict, {}, hint="a block CORPUS: {train: {...}, generate: {...}}"),
}


def load_model(name: str) -> ModelFile:
    """The model file that `name` means, checked. Whether fairseq knows each option is fairseq's to say."""
    path = find("model", name)
    model = checked(read_yaml(path), MODEL, str(path))
    for block in ("train", "generate"):
        _check_options(model[block], str(path), block)
    for corpus, blocks in model["corpora"].items():
        if not isinstance(blocks, dict):
            raise UserError(
                f"{path}: 'corpora.{corpus}' must be a block with train or generate, but is {shown(blocks)}"
            )
        for block, options in blocks.items():
            if block not in ("train", "generate"):
                raise UserError(f"{path}: unknown key 'corpora.{corpus}.{block}'; valid keys: train, generate")
            _check_options(options, str(path), f"corpora.{corpus}.{block}")
    if "arch" not in model["train"]:
        raise UserError(f"{path}: key 'train.arch' is missing; name the architecture to train, e.g. transformer")
    return ModelFile(name=path.stem, path=path, **model)


def _check_options(options: Any, where: str, block: str) -> None:
    if not isinstance(options, dict):
        raise UserError(f"{where}: '{block}' must be a block of options, but is {shown(options)}")
    for key, value in options.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
            raise UserError(
                f"{where}: '{block}.{key}' must be an option's name without dashes in front, e.g. max-tokens"
            )
        if not isinstance(value, str | int | float | bool | None):
            raise UserError(
                f"{where}: '{block}.{key}' must be text, a number, true, false or null, but is {shown(value)}"
            )


def plugin_folder(model: ModelFile) -> Path | None:
    """The folder of the model file's plugin: below the checkout, or an absolute path. None without one."""
    if model.user_dir is None:
        return None
    folder = ROOT / model.user_dir
    if not (folder / "__init__.py").is_file():
        raise UserError(f"{model.path}: user_dir {model.user_dir!r} is no plugin: {folder}/__init__.py is missing")
    return folder
