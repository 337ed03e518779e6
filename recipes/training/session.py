"""Runs one planned training in its folder, and keeps the run's record and log."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from fairseq_compat import events
from recipes.storage import disk, provenance
from recipes.storage.locks import Lock
from recipes.training import fairseq_config, launcher
from recipes.training.launcher import Symptoms
from recipes.training.plan import Plan, as_typed, differences
from recipes.training.progress import Progress
from recipes.training.run import RunRecord
from thoth_core.errors import Terminated, UserError


def prepare(plan: Plan, *, force: bool) -> RunRecord | None:
    """Make the folder of a locked run ready; returns the record of the training to resume, None for a new one.

    Args:
        plan: the training.
        force: remove what an earlier training left.

    Raises:
        UserError: the folder holds a training with other options, or results without checkpoints. Nothing is removed.
    """
    run = plan.run
    if force:
        if run.has_checkpoint() or run.results():
            fairseq_config.build(plan.arguments())  # wrong options are reported before anything is removed
        run.clear()
    if not run.has_checkpoint():
        if results := run.results():
            raise UserError(
                f"{run.folder}: has results ({results[0].name}) but no checkpoints; --force deletes them and "
                "starts from scratch, another --runs keeps them"
            )
        # Nothing can be lost, and the options of a start that failed must not bind the next one.
        run.clear()
        run.create()
        return None
    record = run.record()
    if record is None:
        raise UserError(
            f"{run.folder}: checkpoints without run.json; --force deletes them and starts the training from scratch"
        )
    if changed := differences(record.identity, plan.identity()):
        raise UserError(
            f"{run.folder} was trained with {changed}; "
            "give the same options to resume, --force to start from scratch, another --runs to keep both"
        )
    return record


def is_finished(plan: Plan, earlier: RunRecord) -> bool:
    """Whether the run has reached the limits of the plan."""
    return earlier.status == "finished" and earlier.limits == plan.limits


class Session:
    """One call that trains: prints the progress, writes train.log and keeps run.json."""

    def __init__(self, plan: Plan, call: Sequence[str], earlier: RunRecord | None, log: TextIO) -> None:
        self.plan = plan
        self.run = plan.run
        self.log = log
        self.resumes = earlier is not None
        self.record = _record(plan, call, earlier)
        self.progress = Progress(plan.run, plan.limits)
        self.symptoms = Symptoms()
        self.limit: str | None = None  # that ended it

    def train(self, lock: Lock) -> None:
        """Train until a limit is reached.

        Raises:
            UserError: the training failed; the message says why and names the log.
            KeyboardInterrupt: it was interrupted.
        """
        self.run.write(self.record)
        command = self.plan.command()
        self._announce(command)
        try:
            status = launcher.run(
                command,
                threads=self.record.threads,
                lock=lock,
                report=self.run.progress_path,
                on_line=self._on_line,
                on_event=self._on_event,
            )
        except KeyboardInterrupt as stop:
            self._close("interrupted", "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C")
            print("repeat the same call to resume from the last checkpoint", file=sys.stderr)
            raise
        self._finish(status)

    def _announce(self, command: Sequence[str]) -> None:
        plan, limits = self.plan, self.plan.limits
        verb = "Resuming" if self.resumes else "Training"
        print(f"{verb} {plan.model.name} on {plan.corpus.name} ({plan.languages}):")
        print(f"  {plan.devices.describe(self.record.threads)}, seed {plan.seed}, into {self.run.folder}")
        until = ", ".join(f"{name} {value}" for name, value in limits.items())
        print(f"  until: {until}{', whichever comes first' * (len(limits) > 1)}")
        print(as_typed(command), flush=True)
        self.log.write(f"# {self.record.call}\n# {self.record.command}\n")

    def _on_line(self, line: str) -> None:
        self.symptoms.add_line(line)
        self.log.write(line + "\n")
        self.log.flush()

    def _on_event(self, event: events.AnyEvent) -> None:
        self.symptoms.add_event(event)
        match event:
            case events.Figures():
                self._say(self.progress.add(event))
            case events.Parameters(count=count) if self.record.parameters is None:
                self.record = self.record.changed(parameters=count)
                self.run.write(self.record)
                self._say(f"parameters: {count:,}")
            case events.Initialised(checkpoint=checkpoint):
                self.progress.rewind(0)
                self._say(f"begins with the weights of {checkpoint}")
            case events.Resumed(checkpoint=checkpoint, epoch=epoch, updates=updates):
                self.progress.rewind(updates)
                self._say(f"resumed from {checkpoint}: epoch {epoch}, {updates:,} updates")
            case events.Ended(reason=reason):
                self.limit = reason

    def _say(self, text: str) -> None:
        """Print to the user and the log."""
        print(text, flush=True)
        self.log.write(text + "\n")
        self.log.flush()

    def _finish(self, status: int) -> None:
        why = None
        if status != 0:
            why = f"training stopped: {self.symptoms.cause(status)}"
        elif not self.run.has_checkpoint():
            why = "training ended without a checkpoint"
        elif self.limit is None:
            why = "training ended before it reached a limit"
        if why is not None:
            self._close("failed", why.removeprefix("training stopped: "))
            raise UserError(f"{why} (log: {self.run.log_path})")
        reason = describe_limit(self.limit or "", self.plan)
        self._close("finished", reason)
        print(f"Finished: {reason}. {self.progress.summary()}")

    def _close(self, status: str, reason: str) -> None:
        self.run.write(self.record.changed(**self.progress.state(), status=status, reason=reason))


def _record(plan: Plan, call: Sequence[str], earlier: RunRecord | None) -> RunRecord:
    """The record of a training that begins, or resumes the one of `earlier`."""
    record = RunRecord(
        corpus=plan.corpus.name,
        model=plan.model.name,
        status="running",
        reason=None,
        call=as_typed(call),
        command=as_typed(plan.command()),
        commit=provenance.commit(),
        versions=provenance.versions(),
        seed=plan.seed,
        corpus_fingerprint=plan.corpus.fingerprint,
        device="cpu" if plan.devices.kind == "cpu" else "gpu",
        processes=plan.devices.all_processes,
        threads=plan.threads,
        limits=plan.limits,
        identity=plan.identity(),
    )
    if earlier is None:
        return record
    # A resumed training computes with as many threads as before: the order of sums depends on it.
    state = earlier.model_dump(
        include={"threads", "parameters", "epoch", "updates", "seconds", "best_valid_loss", "best_updates"}
    )
    return record.changed(**state)


def describe_limit(reason: str, plan: Plan) -> str:
    """The limit that ended a training, in words."""
    limits = plan.limits
    return {
        "max-update": f"{limits.get('max-update')} updates",
        "max-epoch": f"{limits.get('max-epoch')} epochs",
        "patience": f"no better validation loss for {limits.get('patience')} epochs",
        "minutes": f"{float(limits.get('minutes', 0)):g} minutes of training",
        "minimum-lr": "learning rate at its minimum",
    }[reason]


def train(plan: Plan, call: Sequence[str], earlier: RunRecord | None, lock: Lock) -> None:
    """Train as planned, in a folder that `prepare` has made ready. Raises as `Session.train`."""
    if plan.hydra:
        disk.write_atomically(plan.configuration_path, plan.configuration())
    with open(plan.run.log_path, "a", encoding="utf-8") as log:
        Session(plan, call, earlier, log).train(lock)


def join(plan: Plan) -> None:
    """Train on a machine that is not the first: the first one checks the run, keeps its record and reports.

    Raises:
        UserError: the training failed.
    """
    run, machines, threads = plan.run, plan.devices.machines, plan.threads
    command = plan.command()
    print(f"Machine {machines.rank} of {machines.nodes}, from 0, {plan.devices.describe(threads)}: the first reports",
          flush=True)  # fmt: skip
    if plan.hydra:
        disk.write_atomically(plan.configuration_path, plan.configuration())
    symptoms = Symptoms()
    path = run.folder / f"train-{machines.rank}.log"
    with (
        run.lock(machines.rank) as lock,
        open(path, "a", encoding="utf-8") as log,
        tempfile.TemporaryDirectory(prefix="thoth-train-") as scratch,
    ):

        def on_line(line: str) -> None:
            symptoms.add_line(line)
            log.write(line + "\n")
            log.flush()

        log.write(f"# {as_typed(command)}\n")
        report = Path(scratch) / "events.jsonl"
        status = launcher.run(
            command, threads=threads, lock=lock, report=report, on_line=on_line, on_event=symptoms.add_event
        )
    if status != 0:
        raise UserError(f"training stopped: {symptoms.cause(status)} (log: {path})")
    print("Finished.")
