"""Corpus files (recipes/corpora/NAME.yaml): their schema, `like`, and loading."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from recipes.config.schema import Settings, find, read_yaml, shortened
from thoth_core.errors import UserError

LANGUAGE = r"^[a-z]{2,3}(_[A-Za-z0-9]+)?$"  # no dash: fairseq splits the pair "de-en" at it

_Language = Annotated[str | None, Field(pattern=LANGUAGE, description="a language code such as de, en or zh_Hans")]
_Text = Annotated[str | None, Field(pattern=r"\S", description="a prefix or file")]
_Texts = Annotated[str | list[str] | None, Field(description="a prefix or file, or a list of them")]
_Columns = Annotated[
    Annotated[list[str], Field(min_length=2, max_length=2)] | None,
    Field(description="null or two column names, [SOURCE, TARGET]"),
]
_Number = int | float
_DropOrKeep = Literal["drop", "keep"]


class Files(Settings):
    """Reader `files`: text below the folder given by --from, or anywhere.

    Each text is a prefix (PREFIX.LANG or PREFIX.LANG.gz) or one file with both languages in columns.
    """

    train: _Text = None
    valid: _Text = None
    test: _Texts = None
    columns: _Columns = None


class Hub(Settings):
    """Reader `hub`: a data set of the Hugging Face hub. `folder` is a folder of one without configurations."""

    name: str | None = Field(default=None, description="the data set's name on the hub (user/name)")
    configuration: str | None = None
    folder: str | None = None
    revision: str = "main"
    train: str = "train"
    valid: str = "validation"
    test: str | list[str] = Field(default="test", description="a split or a list of splits")
    columns: _Columns = None


class Wit3(Settings):
    """Reader `wit3`: IWSLT's archives. A set is a file's name before .PAIR.LANG.xml; "A + B" joins two sets."""

    pair: str | None = Field(default=None, pattern=r"^[a-z]{2,3}-[a-z]{2,3}$", description="a pair as in de-en")
    url: str | None = Field(default=None, pattern=r"^https?://\S+$", description="an https address")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits")
    valid: str | None = Field(default=None, pattern=r"\S", description="a set, or sets joined by +")
    test: list[str] = Field(default=[], description="a list of sets")


class Valid(Settings):
    """`every: N` takes every Nth pair of the cleaned training text as validation set. No other set is read then."""

    every: int | None = Field(default=None, ge=2)


class Quickstart(Settings):
    """Reader `quickstart`: the seed and the sizes of generated text."""

    seed: int = Field(default=1, ge=0)
    train: int = Field(default=20_000, ge=1, le=10**7)
    valid: int = Field(default=1000, ge=1, le=10**6)
    test: int = Field(default=1000, ge=1, le=10**6)


class Sentencepiece(Settings):
    """Sub-word segmentation by sentencepiece."""

    vocab_size: int = Field(ge=10, le=500_000)
    joint: bool = True
    model: Literal["bpe", "unigram"] = "bpe"
    character_coverage: _Number = Field(default=1.0, ge=0.9, le=1.0)
    split_digits: bool = False


class Bpe(Settings):
    """Sub-word segmentation of Moses' tokens by subword-nmt."""

    lowercase: bool = True
    operations: int = Field(default=10_000, ge=1, le=500_000)
    joint: bool = True
    dictionary: Literal["joined", "separate"] = "joined"
    vocabulary_threshold: int | None = Field(default=None, ge=1)


class Clean(Settings):
    """Cleaning of plain text. Lengths count words between spaces, or characters."""

    unit: Literal["words", "characters"] = "words"
    max_length: int = Field(default=200, ge=1, le=100_000)
    max_ratio: _Number | None = Field(default=3.0, ge=1.0, le=1000.0)
    duplicates: _DropOrKeep = "drop"
    identical: _DropOrKeep = "drop"
    empty_evaluation_lines: Literal["error", "keep"] = "error"
    language_check: bool = True


class CleanTokens(Settings):
    """Cleaning as by Moses' clean-corpus-n.perl. Lengths count tokens, `max_word_length` characters of a token."""

    max_length: int = Field(default=175, ge=1, le=100_000)
    max_ratio: _Number | None = Field(default=1.5, ge=1.0, le=1000.0)
    max_word_length: int | None = Field(default=1000, ge=1)
    duplicates: _DropOrKeep = "keep"
    identical: _DropOrKeep = "keep"
    empty_evaluation_lines: Literal["error", "keep"] = "error"
    language_check: bool = True


class CorpusSettings(Settings):
    """A corpus file. Its two preparations differ in the blocks `subwords` and `clean`."""

    description: str
    source: _Language = None  # null: --source and --target name the languages
    target: _Language = None
    reader: Literal["files", "hub", "quickstart", "wit3"]
    preparation: Literal["sentencepiece", "moses-bpe"] = "sentencepiece"
    files: Files = Files()
    hub: Hub = Hub()
    wit3: Wit3 = Wit3()
    valid: Valid = Valid()
    quickstart: Quickstart = Quickstart()
    subwords: Sentencepiece | Bpe
    clean: Clean | CleanTokens

    @property
    def languages(self) -> tuple[str, str]:
        """The source and the target language, which both must be known by now."""
        assert self.source is not None
        assert self.target is not None
        return self.source, self.target


class SentencepieceCorpus(CorpusSettings):
    """`preparation: sentencepiece`: plain text is cleaned and segmented as it is."""

    subwords: Sentencepiece
    clean: Clean = Clean()


class MosesBpeCorpus(CorpusSettings):
    """`preparation: moses-bpe`: Moses' tokens are cleaned and segmented, as by fairseq's prepare-iwslt14.sh."""

    subwords: Bpe = Bpe()
    clean: CleanTokens = CleanTokens()


FORMER_NAMES = {"paper": "moses-bpe"}  # of preparations


def load_corpus(name: str) -> tuple[Path, CorpusSettings]:
    """The corpus file that `name` means (see `find`), and its settings with defaults filled in."""
    path = find("corpus", name)
    document = _with_base(path, ())
    schema = MosesBpeCorpus if document.get("preparation") == "moses-bpe" else SentencepieceCorpus
    return path, schema.checked(document, str(path))


def _with_base(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """The content of the file `path` over that of the corpus that its key `like` names. `before`: whose base it is."""
    document = read_yaml(path)
    preparation = document.get("preparation")
    if isinstance(preparation, str) and preparation in FORMER_NAMES:
        document["preparation"] = FORMER_NAMES[preparation]
    other = document.pop("like", None)
    if other is None:
        return document
    if not isinstance(other, str) or path in before:
        raise UserError(
            f"{path}: 'like' must name another corpus, which is not like this one, but is {shortened(other)}"
        )
    beside = str(path.parent / other) if other.endswith((".yaml", ".yml")) else other
    base = _with_base(find("corpus", beside), (*before, path))
    if document.get("preparation", base.get("preparation")) != base.get("preparation"):
        # The blocks of another preparation have other keys.
        base = {key: value for key, value in base.items() if key not in ("subwords", "clean")}
    return _merged(document, base)


def _merged(document: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `document` in their place, block by block."""
    own = {
        key: _merged(value, base[key]) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in document.items()
    }
    return base | own
