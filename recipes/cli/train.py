"""Train a model on a prepared corpus: `recipes/train.sh CORPUS MODEL`.

Called again, it resumes from the last checkpoint; the result is the same, bit for bit, as without interruption.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_compat import errors
from recipes.cli.arguments import Parser, number, whole_number
from recipes.config.models import load_model
from recipes.data.prepared_corpus import open_corpus
from recipes.storage import commands, disk
from recipes.training import devices, dry_run, fairseq_options, measurement, option_layers, session
from recipes.training.devices import Machines
from recipes.training.plan import Plan, as_typed
from recipes.training.run import Run
from thoth_core.errors import UserError, end_as_by_ctrl_c


def parser() -> argparse.ArgumentParser:
    """The options of recipes/train.sh."""
    train = Parser(
        prog="recipes/train.sh",
        allow_abbrev=False,
        description="Train MODEL on CORPUS into RUNS/CORPUS/MODEL; called again, resume exactly.",
        epilog="Everything after -- goes to fairseq-train and overrides the model file: "
        "... -- --lr 0.001 --max-epoch 5",
    )
    add = train.add_argument
    count = whole_number(1, 1024)
    add("corpus", metavar="CORPUS", help="a corpus prepared by recipes/prepare.sh")
    add("model", metavar="MODEL", help="a name in recipes/models or a path to a .yaml file")
    add("--data", metavar="DIR", type=Path, default=Path("data"), help="prepared corpora (default: data)")
    add("--runs", metavar="DIR", type=Path, default=Path("runs"), help="trained models (default: runs)")
    add("--minutes", metavar="M", type=number(0, math.inf, open_ends=True),
        help="stop after M minutes of training, resumptions included")  # fmt: skip
    add("--processes", metavar="N", type=count, help="train with N processes on the CPU")
    add("--gpus", metavar="N", type=count, help="train with N processes, one GPU each")
    add("--nodes", metavar="N", type=count, default=1, help="train on N machines that share RUNS (default: 1)")
    add("--node-rank", metavar="R", type=int, default=0, help="number of this machine, from 0 (default: 0)")
    add("--master", metavar="HOST:PORT", default="", help="address of the first machine, with --nodes")
    add("--hydra", action="store_true", help="train from a file for Hydra, which is written into the run's folder")
    add("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    add("--seed", metavar="N", type=whole_number(0, 2**31 - 1), default=1,
        help="seed of initial values, batches and dropout (default: 1)")  # fmt: skip
    add("--force", action="store_true", help="delete this run's earlier training and start from scratch")
    add("--dry-run", action="store_true", help="print the command, parameters, batches and updates; train nothing")
    add("--measure", metavar="N", type=whole_number(5, 10**6),
        help="train N updates, keep nothing, and print their memory and time")  # fmt: skip
    return train


def make_plan(arguments: argparse.Namespace, extra: Sequence[str]) -> Plan:
    """The requested training. Raises a UserError if it is impossible."""
    devices.refuse_other_launchers()
    machines = Machines.checked(arguments.nodes, arguments.node_rank, arguments.master)
    if machines.nodes > 1 and arguments.measure:
        raise UserError("--measure works on one machine; leave --nodes out")
    chosen = devices.choose(cpu=arguments.cpu, processes=arguments.processes, gpus=arguments.gpus, machines=machines)
    model = load_model(arguments.model)
    corpus = open_corpus(arguments.corpus, arguments.data)
    corpus.verify("bin")
    options = option_layers.merged_options(model, corpus.name, extra, device=chosen.kind)
    if arguments.minutes is not None:
        options["minutes"] = arguments.minutes
    if fairseq_options.is_language_model(options) and not (corpus.monolingual / "dict.txt").is_file():
        raise UserError(f"{corpus.monolingual}: missing (the corpus is of an earlier version); {corpus.prepare_again}")
    run = Run(arguments.runs / corpus.name / model.name)
    plan = Plan(model, corpus, run, options, chosen, arguments.seed, hydra=arguments.hydra)
    fairseq_options.check_limits(plan.limits)
    if not plan.limits:
        raise UserError(f"nothing would end this training: give --minutes, or max-epoch or max-update in {model.path}")
    return plan


def print_plan(plan: Plan, measured_updates: int | None) -> None:
    """Print the command and size of a training, and memory and time of `measured_updates` updates."""
    print(as_typed(plan.command()), flush=True)
    if plan.hydra:
        print(plan.configuration(), end="")
    size = dry_run.size(plan)
    print(size.describe(), flush=True)
    if measured_updates is not None:
        print(measurement.measure(plan, measured_updates).describe(size.updates), flush=True)


def train(arguments: argparse.Namespace, extra: Sequence[str], call: Sequence[str]) -> None:
    """Do what the command line requests; `call` is the command line for the record. Raises a UserError."""
    plan = make_plan(arguments, extra)
    if arguments.dry_run or arguments.measure:
        print_plan(plan, arguments.measure)
        return
    plan.command()  # refuses a missing plugin before anything is written
    plan.run.create()
    if plan.devices.machines.rank > 0:
        session.join(plan)
        return
    with plan.run.lock() as lock:
        earlier = session.prepare(plan, force=arguments.force)
        if earlier is not None and session.is_finished(plan, earlier):
            print(f"{plan.run.folder} is finished ({earlier.reason}, {earlier.updates or 0:,} updates).")
        else:
            session.train(plan, call, earlier, lock)
    where = {"data": arguments.data, "runs": arguments.runs}
    evaluate = commands.recipe_call("recipes/evaluate.sh", corpus=arguments.corpus, model=arguments.model, **where)
    print(f"Score it with: {evaluate}")


def main(words: Sequence[str] | None = None) -> None:
    """The command; `words` are its arguments instead of the process's."""
    end_as_by_ctrl_c()
    words = sys.argv[1:] if words is None else words
    split = words.index("--") if "--" in words else len(words)
    arguments = parser().parse_args(words[:split])
    with disk.disk_errors(arguments.runs):
        train(arguments, words[split + 1 :], ["recipes/train.sh", *words])


if __name__ == "__main__":
    errors.main(main)
