"""Translate a test set and score it: `python -m recipes.evaluate CORPUS MODEL` (recipes/evaluate.sh)."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.config.models import load_model
from recipes.config.search import search_options
from recipes.console import messages
from recipes.data.prepared_corpus import Corpus, open_corpus
from recipes.evaluation import beam_tuning
from recipes.metrics import results, score_table
from recipes.storage import commands, disk, folders, naming, provenance
from recipes.training import fairseq_options
from recipes.training.run import Run
from thoth_core import allocator
from thoth_core.errors import UserError

if TYPE_CHECKING:  # torch comes with it, after the call has been checked
    from recipes.evaluation.evaluator import Place

DEFAULT_AVERAGE = 5
# The files of an evaluation.
WRITTEN = re.compile(
    r"(hypotheses|references|scores)\.txt|scores\.json|(sentences|exits|alignments)\.jsonl"
    r"|(training|exits|alignment-\d+|slots-\w+)\.png"
)


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="recipes/evaluate.sh",
        allow_abbrev=False,
        description="Translate a test set with a trained MODEL and score it with sacreBLEU, into "
        "RUNS/CORPUS/MODEL/evaluation: hypotheses, references, scores.json, scores.txt, pictures. "
        "A language model is scored by its perplexity of the target side.",
    )
    model_options(found, split="test")
    ensemble_option(found)
    found.add_argument(
        "--tuned", action="store_true", help="with the beam and the length penalty that recipes/tune.sh has found"
    )
    found.add_argument("--pictures", type=int, default=4, metavar="N", help="alignment pictures to draw (default: 4)")
    found.add_argument(
        "--output", metavar="DIR", type=Path, help="where to write instead of RUNS/CORPUS/MODEL/evaluation"
    )
    return found


def model_options(found: argparse.ArgumentParser, *, split: str) -> None:
    """Add which trained model is to translate what, and how; `split` is what is translated without --split."""
    found.add_argument("corpus", metavar="CORPUS", help="a corpus prepared by recipes/prepare.sh")
    found.add_argument("model", metavar="MODEL", help="a name in recipes/models or a path to a .yaml file")
    found.add_argument(
        "--data", metavar="DIR", type=Path, default=Path("data"), help="prepared corpora (default: data)"
    )
    found.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="trained models (default: runs)")
    found.add_argument(
        "--split", default=split, help=f"test, valid, train or another test set of the corpus (default: {split})"
    )
    found.add_argument("--beam", type=int, metavar="N", help="beam size (default: the model file's, else 5)")
    found.add_argument("--lenpen", type=float, metavar="X", help="length penalty (default: the model file's, else 1)")
    found.add_argument("--max-tokens", type=int, metavar="N", help="source sub-words a batch; does not move the result")
    found.add_argument("--checkpoint", choices=("best", "last", "average"), help="which parameters (default: best)")
    found.add_argument(
        "--average",
        type=int,
        metavar="N",
        help=f"mean of the last N epochs' checkpoints (default: up to {DEFAULT_AVERAGE})",
    )
    found.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value of one of the model's options, such as exit_policy=confidence; may be repeated",
    )
    found.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")


def ensemble_option(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "--ensemble",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="other models of the same corpus: each next sub-word is drawn from the mean of all their probabilities",
    )


def check(arguments: argparse.Namespace) -> None:
    """Raise a UserError for options out of range or at odds."""
    for name, low, high in (
        ("beam", 1, 1000),
        ("max_tokens", 1, 10**9),
        ("average", 1, 1000),
        ("pictures", 0, 100),
    ):
        value = getattr(arguments, name, None)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} must be from {low} to {high}, but is {value}")
    if arguments.lenpen is not None and not -100 <= arguments.lenpen <= 100:
        raise UserError(f"--lenpen must be from -100 to 100, but is {arguments.lenpen}")
    if arguments.average is not None and arguments.checkpoint not in (None, "average"):
        raise UserError(f"--average and --checkpoint {arguments.checkpoint} exclude each other; give one of them")
    if getattr(arguments, "tuned", False):
        for name in ("beam", "lenpen"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--tuned and --{name} exclude each other; give one of them")
    if arguments.checkpoint is None:
        arguments.checkpoint = "average" if arguments.average is not None else "best"


def epoch_checkpoints(folder: Path) -> list[Path]:
    """checkpoint1.pt, checkpoint2.pt, ..., the last epoch first."""
    found = [
        (int(m[1]), path) for path in folder.glob("*.pt") if (m := re.fullmatch(r"checkpoint(\d+)\.pt", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def choose_checkpoints(run: Run, checkpoint: str, average: int | None, train_call: str) -> list[Path]:
    """The files to take parameters from: one, or several to average; else a UserError with the remedy."""
    if not run.has_checkpoint():
        raise UserError(f"{run.checkpoints}: no checkpoints; train first with: {train_call}")
    if checkpoint != "average":
        path = run.checkpoints / f"checkpoint_{checkpoint}.pt"
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in run.checkpoints.glob("*.pt")))
            raise UserError(
                f"{path}: missing (there are: {there}); choose another --checkpoint, or train: {train_call}"
            )
        return [path]
    epochs = epoch_checkpoints(run.checkpoints)
    if not epochs:
        raise UserError(
            f"{run.checkpoints}: no epoch checkpoints to average; use --checkpoint best, or train: " + train_call
        )
    if average is not None and average > len(epochs):
        raise UserError(f"--average {average}: only {len(epochs)} epoch checkpoints in {run.checkpoints}; give fewer")
    return epochs[: average or DEFAULT_AVERAGE]


def load(paths: Sequence[Path], train_call: str) -> dict[str, Any]:
    """The checkpoint of one path, or the average of several."""
    from fairseq_compat import averaging, checkpoints

    try:
        # The average takes all that is no parameter, the number of updates too, from the last path: the last epoch's.
        return checkpoints.load(paths[0]) if len(paths) == 1 else averaging.average(paths[::-1])
    except checkpoints.CheckpointError as error:
        raise UserError(f"{error}; another --checkpoint may do, or train again: {train_call}") from None


def check_run(run: Run, corpus: Corpus, train_call: str) -> dict[str, Any]:
    """run.json, of a training on this very corpus; else a UserError."""
    if not run.folder.is_dir():
        raise UserError(f"{run.folder}: no such run; train first with: {train_call}")
    record = run.record()
    if record is None:
        raise UserError(f"{run.record_path}: missing; train first with: {train_call}")
    if record.corpus_fingerprint != corpus.fingerprint:
        raise UserError(
            f"{run.folder} was trained on another state of the corpus {corpus.folder}; "
            f"train anew with: {train_call.replace('recipes/train.sh', 'recipes/train.sh --force', 1)}"
        )
    return record.model_dump()


def read_split(corpus: Corpus, split: str) -> tuple[list[str], list[str]]:
    """Source and reference sentences of a split, as many of one as of the other."""
    from recipes.evaluation.translator import read_lines

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


def read_talks(corpus: Corpus, split: str, count: int) -> list[str] | None:
    """The talk of each of a split's `count` sentences; None for a corpus without talks."""
    from recipes.evaluation.translator import read_lines

    path = corpus.folder / "text" / f"{split}.docs"
    if not path.exists():
        return None
    talks = read_lines(path)
    if len(talks) != count:
        raise UserError(f"{path}: {len(talks):,} lines for {count:,} sentences; {corpus.prepare_again}")
    return talks


@dataclass(frozen=True)
class Chosen:
    """A trained model and what it is to translate, as the options of `model_options` say."""

    model: str
    run: Run
    record: dict[str, Any]  # run.json
    paths: list[Path]  # of the checkpoint, or of those to average
    place: "Place"
    search: dict[str, Any]  # options of the beam search
    sources: list[str]
    references: list[str]
    talks: list[str] | None  # of each sentence, where there are talks
    train_call: str  # the remedy
    others: tuple["Chosen", ...] = ()  # of an ensemble
    in_ensemble: bool = False  # as one of the others

    @property
    def ensemble(self) -> list[str]:
        """Parts of the names of what is made of an ensemble; none without one."""
        return ["ensemble", "+".join(other.model for other in self.others)] if self.others else []

    @property
    def checkpoint(self) -> str:
        """The parameters, for people."""
        names = ", ".join(path.name for path in self.paths)
        return names if len(self.paths) == 1 else f"the average of {names}"

    def load(self) -> dict[str, Any]:
        """The checkpoint's state; a UserError for a language model in an ensemble."""
        import torch

        from recipes.evaluation import model_loading

        torch.manual_seed(1)
        print(f"Loading {self.checkpoint} of {self.run.folder}", flush=True)
        status = self.record.get("status")
        if status != "finished":
            print(f"note: this training is not finished ({status}); {self.train_call} goes on with it")
        state = load(self.paths, self.train_call)
        if (self.others or self.in_ensemble) and model_loading.is_language_model(state):
            raise UserError(f"--ensemble: {self.model} is a language model; only translation models can be ensembled")
        return state

    def load_others(self) -> "tuple[Chosen, list[dict[str, Any]]]":
        """The same with the other models' states at its place, and what is told of each."""
        from recipes.evaluation import model_loading

        states = [other.load() for other in self.others]
        parts = [
            (state, other.place.checkpoint, other.place.user_dir)
            for other, state in zip(self.others, states, strict=True)
        ]
        told = [
            {"model": other.model, "checkpoint": other.checkpoint, "updates": updates_of(state),
             "checkpoint_seconds": seconds_until(other.run, updates_of(state)),
             "training_command": other.record.get("command"), "training_commit": other.record.get("commit"),
             "parameters_sha256": model_loading.parameters_sha256(state)}
            for other, state in zip(self.others, states, strict=True)
        ]  # fmt: skip
        return replace(self, place=replace(self.place, others=parts)), told

    def facts(self, state: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
        """What results of the loaded `state` stand with."""
        import torch

        from recipes.evaluation import model_loading

        updates = updates_of(state)
        return {
            "corpus": self.place.corpus.name,
            "source_language": self.place.corpus.source,
            "target_language": self.place.corpus.target,
            "model": self.model,
            "split": self.place.split,
            "sentences": len(self.sources),
            "checkpoint": self.checkpoint,
            "overrides": self.place.overrides,
            "updates": updates,
            "training_status": self.record.get("status"),
            "training_seconds": self.record.get("seconds"),
            "checkpoint_seconds": seconds_until(self.run, updates),
            "training_command": self.record.get("command"),
            "training_commit": self.record.get("commit"),
            "parameters_sha256": model_loading.parameters_sha256(state),
            "corpus_fingerprint": self.place.corpus.fingerprint,
            "device": "CPU" if self.place.device == "cpu" else torch.cuda.get_device_name(),
            "threads": torch.get_num_threads(),
            "command": shlex.join(command),
            "commit": provenance.commit(),
            "versions": provenance.versions(),
        }


def choose(arguments: argparse.Namespace) -> Chosen:
    """What the options name, with the other models of an ensemble, if it is all there and sound; else a UserError."""
    names = getattr(arguments, "ensemble", [])
    if names and arguments.override:
        raise UserError("--override and --ensemble exclude each other: the models have different options")
    chosen = choose_one(arguments)
    others = tuple(
        replace(choose_one(argparse.Namespace(**{**vars(arguments), "model": name})), in_ensemble=True)
        for name in names
    )
    models = [chosen.model, *(other.model for other in others)]
    for model in models:
        if models.count(model) > 1:
            raise UserError(f"--ensemble: {model} is given twice; an ensemble is of different models")
    return replace(chosen, others=others)


def choose_one(arguments: argparse.Namespace) -> Chosen:
    """What the options name, but for an ensemble's other models; else a UserError."""
    model_file = load_model(arguments.model)
    corpus = open_corpus(arguments.corpus, arguments.data)
    run = Run(arguments.runs / corpus.name / model_file.name)
    train_call = run.train_call() or commands.same_run("recipes/train.sh", arguments)
    record = check_run(run, corpus, train_call)
    paths = choose_checkpoints(run, arguments.checkpoint, arguments.average, train_call)
    overrides = overridden(arguments.override)
    if arguments.split not in corpus.splits:
        raise UserError(f"--split {arguments.split}: the corpus {corpus.folder} has {', '.join(corpus.splits)}")
    corpus.verify(*files_of(corpus, arguments.split))
    try:
        from recipes.evaluation import evaluator
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} has no module {error.name}: install this checkout into it (pip install -e .), "
            "or name another Python with the variable PYTHON"
        ) from None
    search = search_options(
        fairseq_options.with_dashes(model_file.options("generate", corpus.name)), f"{model_file.path}: generate"
    )
    for option in ("beam", "lenpen", "max_tokens"):
        if getattr(arguments, option) is not None:
            search[option.replace("_", "-")] = getattr(arguments, option)
    sources, references = read_split(corpus, arguments.split)
    talks = read_talks(corpus, arguments.split, len(sources))

    import torch

    device = "cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu"
    place = evaluator.Place(corpus, arguments.split, paths[0], model_file.plugin, device, overrides)
    return Chosen(model_file.name, run, record, paths, place, search, sources, references, talks, train_call)


def name_of(arguments: argparse.Namespace, chosen: Chosen) -> str:
    """The folder of an evaluation in its run: "evaluation" and what was asked for, so that no other replaces it."""
    split = [] if arguments.split == "test" else [arguments.split]
    search = ["tuned"] if arguments.tuned else []
    return naming.name(["evaluation", *split, *chosen.ensemble, *search], arguments)


def evaluate(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    check(arguments)
    chosen = choose(arguments)
    output: Path = arguments.output or chosen.run.folder / name_of(arguments, chosen)
    folders.make_ready(output, WRITTEN)
    tuning = beam_tuning.read(chosen, arguments) if arguments.tuned else None

    from recipes.evaluation import evaluator, model_loading

    state = chosen.load()
    facts = chosen.facts(state, command)
    chosen, ensemble = chosen.load_others()
    if tuning is not None:
        told = [facts["parameters_sha256"], *(other["parameters_sha256"] for other in ensemble)]
        beam_tuning.check_parameters(chosen, tuning, told, arguments)
        chosen.search.update(beam=tuning["beam"], lenpen=tuning["lenpen"])
    sources, references, search = chosen.sources, chosen.references, chosen.search
    if model_loading.is_language_model(state):
        found = evaluator.foretell(state, chosen.place, references, search["max-tokens"])
    else:
        found = evaluator.translate(state, chosen.place, sources, references, chosen.talks, search, arguments.pictures)
    scores = found.kind.model_validate(
        {
            **found.scores,
            **facts,
            **({"ensemble": ensemble} if ensemble else {}),
            "tuned": None if tuning is None else beam_tuning.told(tuning),
        }
    )
    table = score_table.table(scores)
    with folders.replaced(output) as building:
        draw_training(building, chosen.run)
        evaluator.draw_slots(building, found.usages)
        found.write(building)
        (building / "scores.txt").write_text(table, encoding="utf-8")
        scores.write(building / results.NAME)
    print()
    print(table)
    print(f"Written to {output}")
    print(found.last_line)
    return 0


def files_of(corpus: Corpus, split: str) -> list[str]:
    """Files of the corpus that an evaluation reads, below its folder."""
    models = {path.relative_to(corpus.folder).as_posix() for path in corpus.subword_files}
    languages = (corpus.source, corpus.target)
    dictionaries = {f"bin/dict.{language}.txt" for language in languages}
    texts = {f"text/{split}.{name}" for name in (*languages, "docs")}
    alone = corpus.alone.relative_to(corpus.folder).as_posix()
    monolingual = {f"{alone}/{name}" for name in ("dict.txt", f"{split}.bin", f"{split}.idx")}
    return sorted(models | dictionaries | texts | monolingual)


def overridden(given: Sequence[str]) -> dict[str, Any]:
    """{"exit_policy": "confidence"} from ["exit_policy=confidence"]; values are read as YAML."""
    found = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or "/" in value:
            raise UserError(f"--override {word}: must be NAME=VALUE, such as exit_policy=confidence")
        try:
            found[name] = None if value == "None" else yaml.safe_load(value)  # as --model-overrides writes it
        except yaml.YAMLError:
            raise UserError(f"--override {word}: {value!r} is no value in YAML") from None
    return found


def updates_of(state: dict[str, Any]) -> int | None:
    """Updates that the checkpoint has seen; None if it does not say."""
    history = state.get("optimizer_history") or [{}]
    return history[-1].get("num_updates")


def seconds_until(run: Run, updates: int | None) -> float | None:
    """Seconds of training that the first `updates` took; None if the run does not say."""
    known = [r["seconds"] for r in run.progress() if r.get("updates") == updates and r.get("seconds") is not None]
    return min(known, default=None)


def draw_training(folder: Path, run: Run) -> None:
    """training.png, if the training left records."""
    from recipes.reporting.plots.training import plot_training

    plot_training(run.progress(), folder / "training.png", f"{run.folder.name} on {run.folder.parent.name}")


def main() -> int:
    given = sys.argv[1:]
    arguments = parser().parse_args(given)
    allocator.keep_freed_memory()
    with disk.disk_errors(arguments.runs), messages.quiet_libraries():
        return evaluate(arguments, ["recipes/evaluate.sh", *given])


if __name__ == "__main__":
    errors.main(main)
