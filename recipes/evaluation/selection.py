"""From a request to what it names: trained models, their checkpoints, the search and the text, all checked.

Nothing here imports torch: a wrong request is refused at once.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.models import load_model
from recipes.config.search import SearchOptions, search_options
from recipes.data.prepared_corpus import Corpus, open_corpus
from recipes.evaluation.request import DEFAULT_AVERAGE, Request
from recipes.training import fairseq_options
from recipes.training.run import Run, RunRecord
from thoth_core.errors import UserError

# The names of all files of an evaluation.
EVALUATION_FILES = re.compile(
    r"(hypotheses|references|scores)\.txt|scores\.json|(sentences|exits|alignments)\.jsonl"
    r"|(training|exits|alignment-\d+|slots-\w+)\.png"
)


@dataclass(frozen=True)
class SelectedModel:
    """A trained model with the checkpoints to take its parameters from."""

    name: str
    run: Run
    record: RunRecord  # run.json
    checkpoints: tuple[Path, ...]  # one, or several to average
    plugin: Path | None  # the folder of its plugin
    train_command: str  # the remedy for a damaged run

    @property
    def checkpoint(self) -> str:
        """The checkpoint for people."""
        names = ", ".join(path.name for path in self.checkpoints)
        return names if len(self.checkpoints) == 1 else f"the average of {names}"


@dataclass(frozen=True)
class Selection:
    """What a request names. Of an ensemble the first model's file gives the search."""

    request: Request
    corpus: Corpus
    models: tuple[SelectedModel, ...]  # the model, then the others of an ensemble
    search: SearchOptions
    overrides: dict[str, Any]  # of the model's options
    sources: list[str]
    references: list[str]
    documents: list[str] | None  # the document of each sentence; None for a corpus without documents

    @property
    def model(self) -> SelectedModel:
        return self.models[0]

    @property
    def split(self) -> str:
        return self.request.split

    @property
    def ensemble_name(self) -> list[str]:
        """Parts of the names of what is made of an ensemble; empty without one."""
        return ["ensemble", "+".join(model.name for model in self.models[1:])] if self.models[1:] else []


def select(request: Request) -> Selection:
    """Everything that `request` names.

    Raises:
        UserError: something is missing, damaged, or does not fit the rest.
    """
    if request.ensemble and request.overrides:
        raise UserError("--override and --ensemble exclude each other: the models have different options")
    model_file = load_model(request.model)
    corpus = open_corpus(request.corpus, request.data)
    models = [select_model(request, corpus)]
    overrides = request.override_values
    corpus.verify(*files_of(corpus, request.split))
    search = search_options(
        fairseq_options.with_dashes(model_file.options("generate", corpus.name)), f"{model_file.path}: generate"
    )
    requested = {"beam": request.beam, "lenpen": request.lenpen, "max_tokens": request.max_tokens}
    search = search.model_copy(update={name: value for name, value in requested.items() if value is not None})
    sources, references = read_split(corpus, request.split)
    documents = read_documents(corpus, request.split, len(sources))
    for name in request.ensemble:
        other = select_model(request.of_model(name), corpus)
        if other.name in {model.name for model in models}:
            raise UserError(f"--ensemble: {other.name} is given twice; an ensemble has different models")
        models.append(other)
    return Selection(request, corpus, tuple(models), search, overrides, sources, references, documents)


def select_model(request: Request, corpus: Corpus) -> SelectedModel:
    """The model that `request` names, trained on `corpus`; else a UserError."""
    model_file = load_model(request.model)
    run = Run(request.runs / corpus.name / model_file.name)
    train_command = run.train_call() or request.run_command("recipes/train.sh")
    record = check_run(run, corpus, train_command)
    checkpoints = select_checkpoints(run, request.checkpoint, request.average, train_command)
    return SelectedModel(model_file.name, run, record, tuple(checkpoints), model_file.plugin, train_command)


def check_run(run: Run, corpus: Corpus, train_command: str) -> RunRecord:
    """run.json of a training on this very corpus; else a UserError."""
    if not run.folder.is_dir():
        raise UserError(f"{run.folder}: no such run; train first with: {train_command}")
    record = run.record()
    if record is None:
        raise UserError(f"{run.record_path}: missing; train first with: {train_command}")
    if record.corpus_fingerprint != corpus.fingerprint:
        raise UserError(
            f"{run.folder} was trained on another state of the corpus {corpus.folder}; train from scratch with: "
            + train_command.replace("recipes/train.sh", "recipes/train.sh --force", 1)
        )
    return record


def epoch_checkpoints(folder: Path) -> list[Path]:
    """checkpoint1.pt, checkpoint2.pt, ..., the last epoch first."""
    epochs = [
        (int(match[1]), path)
        for path in folder.glob("*.pt")
        if (match := re.fullmatch(r"checkpoint(\d+)\.pt", path.name))
    ]
    return [path for _, path in sorted(epochs, reverse=True)]


def select_checkpoints(run: Run, checkpoint: str, average: int | None, train_command: str) -> list[Path]:
    """The checkpoints to take parameters from: one, or several to average; else a UserError with the remedy."""
    if not run.has_checkpoint():
        raise UserError(f"{run.checkpoints}: no checkpoints; train first with: {train_command}")
    if checkpoint != "average":
        path = run.checkpoints / f"checkpoint_{checkpoint}.pt"
        if not path.is_file():
            present = ", ".join(sorted(path.name for path in run.checkpoints.glob("*.pt")))
            raise UserError(
                f"{path}: missing (there are: {present}); choose another --checkpoint, or train: {train_command}"
            )
        return [path]
    epochs = epoch_checkpoints(run.checkpoints)
    if not epochs:
        raise UserError(
            f"{run.checkpoints}: no epoch checkpoints to average; use --checkpoint best, or train: {train_command}"
        )
    if average is not None and average > len(epochs):
        raise UserError(f"--average {average}: only {len(epochs)} epoch checkpoints in {run.checkpoints}; give fewer")
    return epochs[: average or DEFAULT_AVERAGE]


def files_of(corpus: Corpus, split: str) -> list[str]:
    """The files of the corpus that an evaluation reads, below its folder."""
    models = {path.relative_to(corpus.folder).as_posix() for path in corpus.subword_files}
    dictionaries = {f"bin/dict.{language}.txt" for language in corpus.languages}
    texts = {f"text/{split}.{name}" for name in (*corpus.languages, "docs")}
    folder = corpus.monolingual.relative_to(corpus.folder).as_posix()
    monolingual = {f"{folder}/{name}" for name in ("dict.txt", f"{split}.bin", f"{split}.idx")}
    return sorted(models | dictionaries | texts | monolingual)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Only newlines end them: other separators belong to the sentences."""
    again = "prepare the corpus again (recipes/prepare.sh)"
    try:
        text = path.read_bytes().decode("utf-8")  # read_text would take \r for a newline
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {again}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {again}") from None
    return text.removesuffix("\n").split("\n") if text else []


def read_split(corpus: Corpus, split: str) -> tuple[list[str], list[str]]:
    """Source and reference sentences of a split, as many of one as of the other; else a UserError."""
    if split not in corpus.splits:
        raise UserError(f"--split {split}: the corpus {corpus.folder} has {', '.join(corpus.splits)}")
    source_path, target_path = corpus.text(split, corpus.source), corpus.text(split, corpus.target)
    sources, references = read_lines(source_path), read_lines(target_path)
    if not sources:
        raise UserError(f"{source_path}: empty; {corpus.prepare_again}")
    if len(sources) != len(references):
        raise UserError(
            f"{target_path}: {len(references):,} lines for {len(sources):,} of {source_path}; {corpus.prepare_again}"
        )
    return sources, references


def read_documents(corpus: Corpus, split: str, count: int) -> list[str] | None:
    """The document of each of a split's `count` sentences; None for a corpus without documents."""
    path = corpus.folder / "text" / f"{split}.docs"
    if not path.exists():
        return None
    documents = read_lines(path)
    if len(documents) != count:
        raise UserError(f"{path}: {len(documents):,} lines for {count:,} sentences; {corpus.prepare_again}")
    return documents
