"""Find when a model with exits may stop: `python -m recipes.calibrate CORPUS MODEL` (recipes/calibrate.sh)."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_compat import errors
from recipes.cli import evaluate
from recipes.cli.arguments import Parser
from recipes.console import messages
from recipes.storage import commands, disk, naming
from thoth_core import allocator
from thoth_core.errors import UserError

if TYPE_CHECKING:  # torch comes with it, after the call has been checked
    from depth_adaptive.calibration import Resplits

POLICIES = ("confidence", "halting")
# Thresholds are multiples of 1 / this.
DEFAULT_STEPS = {"mean_exit": 1_000, "bleu_loss": 20, "disagreement": 50}
MOST_STEPS = 100_000
DEFAULT_LEVEL = 0.05
# What is found here, or rules it out.
FOUND = ("exit_policy", "exit_threshold", "exit_layer", "exit_distribution")


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="recipes/calibrate.sh",
        allow_abbrev=False,
        description="Find the threshold at which a trained MODEL with exits may stop, on the validation set, into "
        "RUNS/CORPUS/MODEL/calibration-*.json. The last line is the call that evaluates the model with it.",
    )
    evaluate.model_options(found, split="valid")
    wanted = found.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--mean-exit", type=float, metavar="X", help="the threshold of this mean exit")
    wanted.add_argument(
        "--bleu-loss", type=float, metavar="X", help="the lowest threshold that loses at most so much BLEU"
    )
    wanted.add_argument(
        "--disagreement",
        type=float,
        metavar="X",
        help="the lowest threshold at which at most this share of tokens differs from full depth, with a guarantee",
    )
    found.add_argument(
        "--level",
        type=float,
        metavar="Y",
        help=f"of --disagreement: the probability at most that it is exceeded (default: {DEFAULT_LEVEL})",
    )
    found.add_argument(
        "--resplits",
        type=int,
        metavar="N",
        help="of --disagreement: also choose on N random halves and count how often it is exceeded",
    )
    found.add_argument(
        "--per-exit",
        action="store_true",
        help="a threshold for each block instead of one for all: those at which most words of the references are "
        "found; and a temperature for each, at which the references are most likely, unless --override "
        "exit_temperature gives one; not with --disagreement",
    )
    found.add_argument("--policy", choices=POLICIES, default=POLICIES[0], help="what the threshold is of")
    found.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="thresholds are multiples of 1/N; with --per-exit, mean exits are in N steps (default: {mean_exit:,} for "
        "--mean-exit, {bleu_loss} for --bleu-loss, {disagreement} for --disagreement)".format(**DEFAULT_STEPS),
    )
    return found


def check(arguments: argparse.Namespace) -> None:
    """Raise a UserError for options out of range or at odds; fill in defaults."""
    evaluate.check(arguments)
    if arguments.bleu_loss is not None and not 0 <= arguments.bleu_loss <= 100:
        raise UserError(f"--bleu-loss must be from 0 to 100, but is {arguments.bleu_loss:g}")
    for name in ("level", "resplits"):
        if getattr(arguments, name) is not None and arguments.disagreement is None:
            raise UserError(f"--{name} belongs to --disagreement; leave it out, or give that")
    if arguments.per_exit and arguments.disagreement is not None:
        raise UserError(
            "--per-exit: thresholds that are found on the sentences themselves can promise nothing of others; "
            "leave it out, or ask for --mean-exit or --bleu-loss"
        )
    for name in ("disagreement", "level"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name} must be above 0 and below 1, but is {value:g}")
    for name, high in (("resplits", 100_000), ("steps", MOST_STEPS)):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= high:
            raise UserError(f"--{name} must be from 1 to {high}, but is {value}")
    for word in arguments.override:
        if word.partition("=")[0] in FOUND:
            raise UserError(f"--override {word}: is found here; leave it out (--policy chooses confidence or halting)")
    arguments.wanted = next(name for name in DEFAULT_STEPS if getattr(arguments, name) is not None)
    arguments.steps = arguments.steps or DEFAULT_STEPS[arguments.wanted]
    arguments.level = arguments.level or DEFAULT_LEVEL


def check_enough(arguments: argparse.Namespace, sentences: int) -> None:
    """Raise a UserError if so few sentences could not prove anything, even without a single disagreement."""
    needed = math.ceil(math.log(arguments.level) / math.log1p(-arguments.disagreement))
    what = "half of " if arguments.resplits else ""
    if (sentences // 2 if what else sentences) < needed:
        raise UserError(
            f"--disagreement {arguments.disagreement:g} --level {arguments.level:g} needs {needed:,} sentences at "
            f"least, but {arguments.split} has {what}{sentences:,}; raise one of them, or give a larger --split"
        )


def calibrate(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    check(arguments)
    chosen = evaluate.choose(arguments)
    output = chosen.run.folder / f"{name_of(arguments)}.json"
    if not disk.writable(chosen.run.folder):
        raise UserError(f"{chosen.run.folder}: not writable; copy the run, and name its folder with --runs")
    if arguments.disagreement is not None:
        check_enough(arguments, len(chosen.sources))

    from recipes.evaluation import exit_calibration

    state = chosen.load()
    translator = exit_calibration.load(state, chosen.place, policy=arguments.policy)
    exits = translator.model.decoder.num_layers
    if arguments.mean_exit is not None and not 1 <= arguments.mean_exit <= exits:
        raise UserError(f"--mean-exit must be from 1 to {exits}, the decoder's blocks, but is {arguments.mean_exit:g}")
    print(f"Translating {len(chosen.sources):,} sentences of {arguments.split}, first at full depth", flush=True)
    trials = exit_calibration.Trials(
        translator,
        chosen.sources,
        chosen.references,
        chosen.search,
        policy=arguments.policy,
        language=chosen.place.corpus.target,
    )
    resplits, notes = None, []
    steps = arguments.steps
    before = translator.model.decoder.temperatures
    dial = exit_calibration.one_each(trials, steps) if arguments.per_exit else exit_calibration.one_for_all(steps)
    temperature = translator.model.decoder.exit_options.exit_temperature
    found: exit_calibration.Threshold | None
    if arguments.wanted == "mean_exit":
        found = exit_calibration.for_mean_exit(trials, arguments.mean_exit, steps, dial)
    elif arguments.wanted == "bleu_loss":
        found = exit_calibration.for_bleu_loss(trials, arguments.bleu_loss, steps, dial)
    else:
        found, resplits = exit_calibration.for_disagreement(
            trials,
            tolerated=arguments.disagreement,
            level=arguments.level,
            steps=steps,
            resplits=arguments.resplits,
        )
        notes.append(guarantee(arguments, len(chosen.sources), chosen.search["beam"]))
    if found is not None:
        trials.decoded(found)
        trials.forced(found)
    if resplits is not None:
        notes.append(told(resplits, arguments, len(chosen.sources)))
    if found is None:
        highest = exit_calibration.written(dial(steps - 1))
        notes.append(f"Not even the highest threshold, {highest}, will do: full depth it is.")

    policy = ["exit_policy=full"]
    if found is not None:
        policy = [f"exit_policy={arguments.policy}", f"exit_threshold={exit_calibration.written(found)}"]
        if translator.model.decoder.temperatures != before:
            policy.append(f"exit_temperature={temperature}")
    call = commands.call("recipes/evaluate.sh", arguments, policy)
    assert trials.full.bleu is not None
    table = trials.table(found)
    result: dict[str, Any] = {
        "wanted": {arguments.wanted: getattr(arguments, arguments.wanted)},
        "policy": arguments.policy,
        "threshold": found,
        "temperature": temperature,
        "steps": steps,
        "rows": [row.figures() for row in trials.rows()],
        "bleu_signature": trials.full.bleu.signature,
        "search": chosen.search,
        "evaluate": call,
        **chosen.facts(state, command),
    }
    if arguments.disagreement is not None:
        result["level"] = arguments.level
        result["guarantee"] = notes[0]
    if resplits is not None:
        result["resplits"] = vars(resplits)
    disk.write_json(output, result)
    print()
    print(table)
    for note in notes:
        print(note)
    print(f"Written to {output}")
    print(call)
    return 0


def name_of(arguments: argparse.Namespace) -> str:
    """The file's name without its ending: what was asked, so that another question has another file."""
    wanted = f"{arguments.wanted.replace('_', '-')}-{getattr(arguments, arguments.wanted):g}"
    level = [f"level-{arguments.level:g}"] if arguments.disagreement is not None else []
    steps = [] if arguments.steps == DEFAULT_STEPS[arguments.wanted] else [f"steps-{arguments.steps}"]
    split = [] if arguments.split == "valid" else [arguments.split]
    each = ["per-exit"] if arguments.per_exit else []
    return naming.name(["calibration", arguments.policy, *each, wanted, *level, *steps, *split], arguments)


def guarantee(arguments: argparse.Namespace, sentences: int, beam: int) -> str:
    """What --disagreement promises, for people."""
    tolerated, level = arguments.disagreement, arguments.level
    return (
        f"Promised, but for a probability of {level:g} over the draw of these {sentences:,} sentences: the mean share\n"
        f"of a sentence's tokens at which the most likely one is not full depth's is at most {tolerated:g}. It holds\n"
        "for sentences drawn independently from the same source, led along full depth's own translation\n"
        f"(beam {beam}). Of tokens that follow a changed one, or of BLEU, it says nothing."
    )


def told(resplits: "Resplits", arguments: argparse.Namespace, sentences: int) -> str:
    """What choosing on random halves gave, for people."""
    tolerated, level, half = arguments.disagreement, arguments.level, sentences // 2
    lines = [
        f"Chosen on {resplits.count:,} random halves of {half:,} sentences (full depth on {resplits.full_depth:,}), "
        f"{tolerated:g} is exceeded"
    ]
    for where, count in ((f"all {sentences:,} sentences", resplits.on_all), ("the other half", resplits.on_other_half)):
        share = count / resplits.count
        error = (share * (1 - share) / resplits.count) ** 0.5
        lines.append(f"  on {where:<22} {count:,} times: {share:.1%}, standard error {error:.1%}")
    bound = resplits.bound(level)
    kept = "kept" if resplits.on_all / resplits.count <= bound else "BROKEN"
    lines += [
        f"  promised: at most {level:.1%}, with two standard errors {bound:.1%}: {kept}.",
        "The promise speaks of all sentences, from which a half is drawn; the other half's mean also has its own luck.",
    ]
    return "\n".join(lines)


def main() -> int:
    given = sys.argv[1:]
    arguments = parser().parse_args(given)
    allocator.keep_freed_memory()
    with disk.disk_errors(arguments.runs), messages.quiet_libraries():
        return calibrate(arguments, ["recipes/calibrate.sh", *given])


if __name__ == "__main__":
    errors.main(main)
