"""Train a model on a prepared corpus: `python -m recipes.train CORPUS MODEL` (recipes/train.sh).

Called again, it resumes where the last checkpoint stands; the result is the same, bit for bit, as without
interruption.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fairseq_compat import errors
from recipes.cli.arguments import Parser
from recipes.config import schema
from recipes.data.prepared_corpus import open_corpus
from recipes.storage import disk, naming, provenance
from recipes.training import fairseq_config, fairseq_options, launcher, measurement
from recipes.training.events import Progress, parse, parse_parameters
from recipes.training.plan import Plan, check_limits, differences, merged_options, place, shown, threads_for
from recipes.training.run import Run
from thoth_core.errors import Terminated, UserError, end_as_by_ctrl_c


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="recipes/train.sh",
        allow_abbrev=False,
        description="Train MODEL on CORPUS into RUNS/CORPUS/MODEL; called again, resume exactly.",
        epilog="Everything after -- goes to fairseq-train and overrides the model file: "
        "... -- --lr 0.001 --max-epoch 5",
    )
    add = found.add_argument
    add("corpus", metavar="CORPUS", help="a corpus prepared by recipes/prepare.sh")
    add("model", metavar="MODEL", help="a name in recipes/models or a path to a .yaml file")
    add("--data", metavar="DIR", type=Path, default=Path("data"), help="prepared corpora (default: data)")
    add("--runs", metavar="DIR", type=Path, default=Path("runs"), help="trained models (default: runs)")
    add("--minutes", metavar="M", type=float, help="stop after M minutes of training, resumptions included")
    add("--processes", metavar="N", type=int, help="train with N processes on the CPU")
    add("--gpus", metavar="N", type=int, help="train with N processes, one GPU each")
    add("--nodes", metavar="N", type=int, default=1, help="train on N machines that share RUNS (default: 1)")
    add("--node-rank", metavar="R", type=int, default=0, help="which of them this is, from 0 (default: 0)")
    add("--master", metavar="HOST:PORT", help="where the first machine is reached, with --nodes")
    add("--hydra", action="store_true", help="train from a file for Hydra, which is written into the run's folder")
    add("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    add("--seed", metavar="N", type=int, default=1, help="of initial values, batches, dropout (default: 1)")
    add("--force", action="store_true", help="delete this run's earlier training and start anew")
    add("--dry-run", action="store_true", help="print the command, parameters, expected memory and time; train nothing")
    add("--measure", metavar="N", type=int, help="train N updates, keep nothing, and tell memory and time of the rest")
    return found


def check(arguments: argparse.Namespace) -> None:
    """Raise a UserError for an option that is out of range, or when started under torchrun."""
    if arguments.minutes is not None and not 0 < arguments.minutes < 1e6:
        raise UserError(f"--minutes must be above 0, but is {arguments.minutes:g}")
    for name in ("processes", "gpus"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= 1024:
            raise UserError(f"--{name} must be from 1 to 1024, but is {value}")
    if arguments.measure is not None and not 5 <= arguments.measure <= 10**6:
        raise UserError(f"--measure must be from 5 to 1000000 updates, but is {arguments.measure}")
    if not 0 <= arguments.seed < 2**31:
        raise UserError(f"--seed must be from 0 to 2147483647, but is {arguments.seed}")
    inherited = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ]
    if inherited:
        raise UserError(
            f"{inherited[0]} is set in the environment: recipes/train.sh starts its processes itself; "
            "call it once, without torchrun or srun, with --processes N or --gpus N"
        )


def machines(arguments: argparse.Namespace) -> launcher.Machines:
    """The machines that --nodes, --node-rank and --master speak of; a UserError if they do not go together."""
    nodes, rank, master = arguments.nodes, arguments.node_rank, arguments.master or ""
    if not 1 <= nodes <= 1024:
        raise UserError(f"--nodes must be from 1 to 1024, but is {nodes}")
    if nodes == 1 and (rank or master):
        raise UserError("--node-rank and --master go with --nodes N; give that too, or leave them out")
    if not 0 <= rank < nodes:
        raise UserError(f"--node-rank must be from 0 to {nodes - 1} with --nodes {nodes}, but is {rank}")
    if nodes > 1 and not re.fullmatch(r"[^\s:]+:[1-9]\d{0,4}", master):
        raise UserError(
            f"--nodes {nodes} needs --master HOST:PORT, the first machine's name and a free port there, "
            f"but it is {master!r}; give the same on each machine"
        )
    if nodes > 1 and arguments.measure:
        raise UserError("--measure works on one machine; leave --nodes out")
    return launcher.Machines(nodes, rank, master)


def make_plan(arguments: argparse.Namespace, extra: Sequence[str]) -> Plan:
    """The training that is asked for; a UserError if it cannot be."""
    check(arguments)
    device, processes = place(cpu=arguments.cpu, processes=arguments.processes, gpus=arguments.gpus)
    model = schema.load_model(arguments.model)
    corpus = open_corpus(arguments.corpus, arguments.data)
    corpus.verify("bin")
    merged = merged_options(model, corpus, extra, device=device)
    if arguments.minutes is not None:
        merged["minutes"] = arguments.minutes
    if fairseq_options.is_language_model(merged) and not (corpus.alone / "dict.txt").is_file():
        raise UserError(f"{corpus.alone}: missing (the corpus is of an earlier version); {corpus.prepare_again}")
    run = Run(arguments.runs / corpus.name / model.name)
    plan = Plan(
        *(model, corpus, run, merged, device, processes, arguments.seed),
        machines=machines(arguments),
        hydra=arguments.hydra,
    )
    check_limits(plan.limits)
    if not plan.limits:
        raise UserError(f"nothing would end this training: give --minutes, or max-epoch or max-update in {model.path}")
    return plan


def train(arguments: argparse.Namespace, extra: Sequence[str], call: Sequence[str]) -> int:
    plan = make_plan(arguments, extra)
    command = plan.command()
    if arguments.dry_run or arguments.measure:
        print(shown(command), flush=True)
        if plan.hydra:
            print(plan.configuration(), end="")
        print(measurement.table(measurement.expect(plan), measurement.measure(plan, arguments.measure)), flush=True)
        return 0
    next_step = f"Score it with: {naming.same_run('recipes/evaluate.sh', arguments)}"
    run = plan.run
    run.create()
    if plan.machines.rank > 0:
        return join(plan, command)
    with run.lock() as lock:
        if arguments.force:
            if run.has_checkpoint() or run.results():
                fairseq_config.build(plan.arguments())  # what is wrong with the options is told before anything is lost
            run.clear()
        record = run.record() if run.has_checkpoint() else None
        if run.has_checkpoint():
            if record is None:
                raise UserError(f"{run.folder}: checkpoints without run.json; --force deletes them and starts anew")
            if changed := differences(record.get("identity", {}), plan.identity()):
                raise UserError(
                    f"{run.folder} was trained with {changed}; "
                    "give the same options to resume, --force to start anew, another --runs to keep both"
                )
            if record.get("status") == "finished" and record.get("limits") == plan.limits:
                print(f"{run.folder} is finished ({record['reason']}, {record['updates'] or 0:,} updates).")
                print(next_step)
                return 0
        else:
            if results := run.results():
                raise UserError(
                    f"{run.folder}: has results ({results[0].name}) but no checkpoints; --force deletes them and "
                    "starts anew, another --runs keeps them"
                )
            # There is nothing to lose: options of a start that failed do not bind the next one.
            run.clear()
            run.create()
        status = execute(plan, command, call, record, lock)
        if status == 0:
            print(next_step)
        return status


def join(plan: Plan, command: Sequence[str]) -> int:
    """Train on a machine that is not the first: that one checks, keeps the run's records and reports."""
    run, rank = plan.run, plan.machines.rank
    threads = threads_for(plan.processes)
    print(f"Machine {rank} of {plan.machines.nodes}, from 0, {plan.place(threads)}: the first reports", flush=True)
    recent: list[str] = []
    if plan.hydra:
        disk.write_atomically(plan.configuration_path, plan.configuration())
    with run.lock(rank) as lock, open(run.folder / f"train-{rank}.log", "a", encoding="utf-8") as log:

        def on_line(line: str) -> None:
            recent.append(line)
            del recent[:-200]
            log.write(line + "\n")
            log.flush()

        log.write(f"# {shown(command)}\n")
        status = launcher.run(command, threads=threads, lock=lock, on_line=on_line)
    if status != 0:
        why = f"ended by signal {-status}" if status < 0 else launcher.cause(recent)
        raise UserError(f"training stopped: {why} (log: {run.folder}/train-{rank}.log)")
    print("Finished.")
    return 0


def execute(
    plan: Plan,
    command: Sequence[str],
    call: Sequence[str],
    earlier: Mapping[str, Any] | None,
    lock: IO[str],
) -> int:
    """Run the training `command` with progress, and keep run.json; `earlier` is that of the run to resume."""
    run = plan.run
    record: dict[str, Any] = {
        **(earlier or {}),
        "corpus": plan.corpus.name,
        "model": plan.model.name,
        "status": "running",
        "reason": None,
        "call": shown(call),
        "command": shown(command),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "seed": plan.seed,
        "corpus_fingerprint": plan.corpus.fingerprint,
        "device": plan.device,
        "processes": plan.all_processes,
        # A resumed training computes with as many threads as before: the order of sums depends on it.
        "threads": (earlier or {}).get("threads") or threads_for(plan.processes),
        "limits": plan.limits,
        "identity": plan.identity(),
    }
    run.update(record)
    if plan.hydra:
        disk.write_atomically(plan.configuration_path, plan.configuration())
    progress = Progress(run, plan.limits)
    print(
        f"{'Training' if earlier is None else 'Resuming'} {plan.model.name} on {plan.corpus.name} ({plan.languages}):"
    )
    print(f"  {plan.place(record['threads'])}, seed {plan.seed}, into {run.folder}")
    until = ", ".join(f"{name} {value}" for name, value in plan.limits.items())
    print(f"  until: {until}{', whichever comes first' * (len(plan.limits) > 1)}")
    print(shown(command), flush=True)

    recent: list[str] = []  # lines, to find the cause of a failure in
    endings: list[str] = []  # lines that tell why the training ended

    def on_line(line: str) -> None:
        if (found := parse(line)) is not None:
            line = progress.add(found)
            print(line, flush=True)
        else:
            recent.append(line)
            del recent[:-200]
            if re.search(r"(?i)stopping training|early stop", line):
                endings.append(line)
            parameters = parse_parameters(line)
            if parameters is not None:
                progress.begin()  # fairseq tells them right before it trains
            if parameters is not None and "parameters" not in record:
                record["parameters"] = parameters
                run.update(record)
                print(f"parameters: {parameters:,}", flush=True)
            if (loaded := resumption(line)) is not None:
                progress.rewind(loaded[2])
                if loaded[2] == 0:  # --finetune-from-model and the like: a training of its own
                    print(f"begins with the parameters of {loaded[0]}", flush=True)
                else:
                    print(f"resumed from {loaded[0]}: epoch {loaded[1]}, {loaded[2]:,} updates", flush=True)
        log.write(line + "\n")
        log.flush()

    def close(status: str, reason: str) -> None:
        run.update({**record, **progress.standing(), "status": status, "reason": reason})

    with open(run.log_path, "a", encoding="utf-8") as log:
        log.write(f"# {shown(call)}\n# {shown(command)}\n")
        try:
            status = launcher.run(command, threads=record["threads"], lock=lock, on_line=on_line)
        except KeyboardInterrupt as stop:
            close("interrupted", "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C")
            print("call the same again to resume from the last checkpoint", file=sys.stderr)
            raise
    if status != 0:
        why = f"ended by signal {-status}" if status < 0 else launcher.cause(recent)
        close("failed", why)
        raise UserError(f"training stopped: {why} (log: {run.log_path})")
    if not run.has_checkpoint():
        close("failed", "it saved nothing")
        raise UserError(f"training ended without a checkpoint (log: {run.log_path})")
    reason = reason_to_stop(endings, plan.limits)
    close("finished", reason)
    print(f"Finished: {reason}. {progress.summary()}")
    return 0


def reason_to_stop(endings: Sequence[str], limits: Mapping[str, Any]) -> str:
    """Why a training that ended well did so, from the lines of its log that tell it."""
    text = "\n".join(endings)
    if "stop_time_hours" in text:
        return f"{float(limits['minutes']):g} minutes of training"
    if "early stop since valid" in text:
        return f"no better validation loss for {limits['patience']} epochs"
    if "max_update" in text:
        return f"{limits['max-update']} updates"
    if "minimum learning rate" in text:
        return "learning rate at its minimum"
    return f"{limits.get('max-epoch')} epochs"


def resumption(line: str) -> tuple[str, int, int] | None:
    """(name, epoch, updates) of the checkpoint that this line says was loaded."""
    found = re.search(r"Loaded checkpoint (.+\.pt) \(epoch (\d+) @ (\d+) updates\)", line)
    return (Path(found[1]).name, int(found[2]), int(found[3])) if found else None


def main() -> int:
    end_as_by_ctrl_c()
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    arguments = parser().parse_args(given[:split])
    with disk.disk_errors(arguments.runs):
        return train(arguments, given[split + 1 :], ["recipes/train.sh", *given])


if __name__ == "__main__":
    errors.main(main)
