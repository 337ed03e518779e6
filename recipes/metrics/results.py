"""The schema of scores.json, the results of an evaluation.

`Scores` holds the fields that all results have, `TranslationScores` and `LanguageModelScores` those of their kind.
docs/scores.md is generated from here (`python -m recipes.metrics.results_page`).
"""

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from recipes.config.search import SearchOptions
from recipes.storage.records import DocumentedRecord, Record
from thoth_core.errors import UserError

NAME = "scores.json"
SCHEMA: Final = 1
AGAIN = "evaluate again (recipes/evaluate.sh)"

LANGUAGE_MODEL: Final = "language_model"
# The fields of TranslationScores that hold a corpus score, in the order in which they are shown.
SCORE_FIELDS = ("bleu", "chrf", "ter", "tokenised_bleu")


class Score(DocumentedRecord):
    """A corpus score by sacreBLEU."""

    score: float
    """the score in points (0 to 100; TER may exceed 100)"""
    signature: str
    """sacreBLEU's signature, which names every setting and the version"""


class Exits(DocumentedRecord):
    """Where tokens left the decoder of a depth-adaptive model."""

    policy: str
    """the policy that chose the exits"""
    mean: float
    """mean exit, counted from 1"""
    blocks: int
    """number of decoder blocks"""
    tokens: dict[str, int]
    """number of tokens by their exit"""
    mflops_per_token: float
    """operations of the decoder per token in millions"""
    mflops_per_token_full_depth: float
    """the same if every token passed all blocks"""


class SlotUsage(DocumentedRecord):
    """How one product-key memory was used."""

    used: float
    """share of the slots that were read"""
    kl: float
    """divergence of the usage from uniform in nats"""
    used_by_head: list[float] = Field(default_factory=list)
    """`used` of each head alone"""
    kl_by_head: list[float] = Field(default_factory=list)
    """`kl` of each head alone"""


class ModelFacts(DocumentedRecord):
    """A trained model of an evaluation."""

    model: str
    """name of the model file"""
    checkpoint: str
    """checkpoint file, or the files that were averaged"""
    updates: int | None = None
    """updates that the checkpoint has seen"""
    checkpoint_seconds: float | None = None
    """seconds of training to the checkpoint"""
    training_command: str | None = None
    """command that trained the model"""
    training_commit: str | None = None
    """commit that trained the model"""
    parameters_sha256: str | None = None
    """SHA-256 of names, types, shapes and values of the parameters"""


class TuningRow(DocumentedRecord):
    """BLEU of one pair of beam size and length penalty."""

    beam: int
    """beam size"""
    lenpen: float
    """length penalty"""
    bleu: float
    """BLEU on the validation set"""


class TunedSearch(DocumentedRecord):
    """Where a tuned beam size and length penalty come from."""

    file: str
    """file that recipes/tune.sh wrote, in the folder of the run"""
    split: str
    """split that they were chosen on"""
    rows: list[TuningRow]
    """all pairs that were tried"""
    bleu_signature: str
    """sacreBLEU's signature of the BLEU of the rows"""
    command: str
    """command that tuned them"""
    commit: str | None = None
    """commit that tuned them"""


class Facts(ModelFacts):
    """What a result was obtained with."""

    corpus: str
    """name of the corpus"""
    corpus_fingerprint: str | None = None
    """fingerprint of the prepared corpus"""
    source_language: str
    """language code of the source"""
    target_language: str = ""
    """language code of the target"""
    split: str
    """split of the corpus, such as test"""
    sentences: int
    """number of sentences of the split"""
    overrides: dict[str, JsonValue] = Field(default_factory=dict)
    """options of the model that --override changed"""
    training_status: str | None = None
    """state of the training: finished, interrupted, ..."""
    training_seconds: float | None = None
    """seconds of training in all"""
    device: str
    """CPU, or the name of the GPU"""
    threads: int
    """threads of PyTorch"""
    command: str
    """command that wrote this file"""
    commit: str | None = None
    """commit of the checkout, with -dirty if tracked files differ from it"""
    versions: dict[str, str]
    """versions of Python and of the packages that the result depends on"""


class Scores(Facts):
    """The fields that the results of every model have."""

    schema_number: Literal[1] = Field(default=SCHEMA, alias="schema")
    """number of this schema"""
    parameters: int
    """number of parameters, of an ensemble those of all models"""
    tokens: int
    """tokens that were written (translation) or read (language model), ends of sentences included"""
    seconds: float
    """seconds of decoding or reading, without loading and scoring"""
    tokens_per_second: float
    """tokens divided by seconds"""
    slot_usage: dict[str, SlotUsage] = Field(default_factory=dict)
    """usage of the memories by layer, such as d2; empty for a model without memories"""

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, document: Any) -> Any:
        """Schema 0, without a number, is schema 1 without the fields `schema` and `kind`."""
        if isinstance(document, dict) and "schema" not in document and "schema_number" not in document:
            return {**document, "schema": SCHEMA, "kind": cls.model_fields["kind"].default}
        return document


class TranslationScores(Scores):
    """The results of a translation model, or of an ensemble of them."""

    kind: Literal["translation"] = "translation"
    """kind of the results"""
    bleu: Score
    """BLEU of detokenised text"""
    chrf: Score
    """chrF2 of detokenised text"""
    ter: Score
    """TER of detokenised text; lower is better"""
    tokenised_bleu: Score | None = None
    """BLEU of tokens, for a corpus prepared with Moses and BPE; null elsewhere"""
    truncated: int = 0
    """sentences whose source was cut to the model's length"""
    blocks: int | None = None
    """number of decoder blocks"""
    beam: int
    """beam size"""
    lenpen: float
    """length penalty"""
    search: SearchOptions
    """all options of the search"""
    exits: Exits | None = None
    """exits of a depth-adaptive model; null elsewhere"""
    ensemble: list[ModelFacts] = Field(default_factory=list)
    """the other models of an ensemble; empty without one"""
    tuned: TunedSearch | None = None
    """where beam size and length penalty come from if recipes/tune.sh chose them; else null"""

    @property
    def by_metric(self) -> dict[str, Score]:
        """The scores that there are, by their names in SCORE_FIELDS."""
        scores = {name: getattr(self, name) for name in SCORE_FIELDS}
        return {name: score for name, score in scores.items() if score is not None}

    @property
    def signatures(self) -> dict[str, str]:
        """The signature of each score, by its name in SCORE_FIELDS."""
        return {name: score.signature for name, score in self.by_metric.items()}

    @property
    def models(self) -> list[ModelFacts]:
        """All models: the one, or those of an ensemble."""
        return [self, *self.ensemble]

    @property
    def checkpoints(self) -> str:
        """The checkpoint for people; of an ensemble all of them, each with its model."""
        if not self.ensemble:
            return self.checkpoint
        return " + ".join(f"{model.model} ({model.checkpoint})" for model in self.models)

    @property
    def seconds_of_training(self) -> float | None:
        """Seconds of training to the checkpoints of all models together; None if those of one are unknown."""
        known = [model.checkpoint_seconds for model in self.models if model.checkpoint_seconds is not None]
        return sum(known) if len(known) == len(self.models) else None

    @property
    def searched_with(self) -> str:
        """Search, checkpoints and overrides on one line, for people."""
        tuned = f" (tuned on {self.tuned.split})" if self.tuned is not None else ""
        options = ", ".join(f"{name}={value}" for name, value in self.overrides.items())
        search = f"beam {self.search.beam}, length penalty {self.search.lenpen:g}{tuned}; {self.checkpoints}"
        return search + (f"; {options}" if options else "")


class Perplexity(DocumentedRecord):
    """Perplexities of the same text by two units."""

    word: float
    """perplexity per word; the end of a sentence counts as a word"""
    subword: float
    """perplexity per token; the end of a sentence counts as a token"""


class LanguageModelScores(Scores):
    """The results of a language model on the target side of a split."""

    kind: Literal["language_model"] = "language_model"
    """kind of the results"""
    perplexity: Perplexity
    """perplexity of the text"""
    bits_per_character: float
    """bits per character; the end of a sentence counts as a character"""
    words: int
    """number of words, ends of sentences included"""
    characters: int
    """number of characters, ends of sentences included"""
    tuned: None = None
    """always null: nothing is tuned"""


class _Header(Record):
    """The fields that name the schema and the kind of a results file; all others are ignored."""

    model_config = ConfigDict(extra="ignore")
    schema_number: int = Field(default=0, alias="schema")
    kind: str = ""
    perplexity: JsonValue = None  # only results of language models had it in schema 0


def read(path: Path) -> TranslationScores | LanguageModelScores:
    """The results in the file `path`.

    Raises:
        UserError: the file is missing, breaks the schema, or has the schema of a newer version.
    """
    header = _Header.read(path, remedy=AGAIN)
    if header.schema_number > SCHEMA:
        raise UserError(
            f"{path}: has schema {header.schema_number}, this version reads up to {SCHEMA}; update the checkout"
        )
    if header.kind == LANGUAGE_MODEL or (header.schema_number == 0 and header.perplexity is not None):
        return LanguageModelScores.read(path, remedy=AGAIN)
    return TranslationScores.read(path, remedy=AGAIN)
