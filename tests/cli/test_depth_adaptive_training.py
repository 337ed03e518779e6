"""Trainings of depth_adaptive on several processes, killed and resumed, and in half precision, by the command lines."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.test_compat_resuming import assert_same_training
from tests.support.command_lines import Command, run, start_processes
from tests.support.depth_commands import COMMON, generate, translations

UPDATES = 9  # the seventh, an epoch's last, has a single batch: one of two processes gets none
OPTIONS = [
    *(*COMMON, "--arch", "depth_adaptive_transformer_small", "--halting", "geometric"),
    *("--halting-smoothing", 1.0, "--exit-gradient-scale", 0.5, "--exit-projections", "separate"),
    *("--max-update", UPDATES, "--save-interval-updates", 3),
    *("--batch-size-valid", 8),  # three batches: one of two processes gets a single one
]
TRAININGS = {"aligned": ["--exit-distillation", 0.3], "mixed": ["--exit-training", "mixed", "--exit-samples", 2]}
trainings = pytest.mark.parametrize("training", TRAININGS)

# A plugin that imports depth_adaptive and records the exits that mixed training draws.
SPY = """\
import json, os, sys
from pathlib import Path

from depth_adaptive.decoder import Decoder

draw = Decoder._all_exits

def noted(self, *arguments):
    x, extra = draw(self, *arguments)
    if extra["mixed"]:
        with open(Path(__file__).parent / f"exits{os.environ.get('RANK', 0)}.jsonl", "a") as lines:
            print(json.dumps([exits.tolist() for exits, _ in extra["mixed"]]), file=lines)
    return x, extra

Decoder._all_exits = noted
"""


def arguments(folder: Path, training: str, *more: object) -> list[object]:
    """The options of a training in folder/run. The exits that process r draws go to folder/spy_exits/exits<r>.jsonl."""
    spy = folder / "spy_exits"
    spy.mkdir(parents=True, exist_ok=True)
    (spy / "__init__.py").write_text(SPY, encoding="utf-8")
    return [*OPTIONS, *TRAININGS[training], "--user-dir", spy, "--save-dir", folder / "run", *more]


def on_one(folder: Path, corpus: Path, training: str, *more: object) -> Command:
    """Train on one process, with two batches per update."""
    command = run(
        folder.with_suffix(".log"),
        *("fairseq_compat.train", corpus, *arguments(folder, training, "--update-freq", 2, *more)),
    )
    assert command.status == 0, command.output
    return command


def on_two(folder: Path, corpus: Path, training: str, *more: object) -> list[Command]:
    return start_processes(folder, 2, "fairseq_compat.train", corpus, *arguments(folder, training, *more))


def drawn(folder: Path, rank: int = 0) -> list[object]:
    """The exits of each batch of process ``rank``."""
    path = folder / "spy_exits" / f"exits{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_process(batches: list[object]) -> tuple[list[object], list[object]]:
    """The batches of one process, divided as two processes get them; an epoch has 13."""
    shares: tuple[list[object], list[object]] = ([], [])
    for number, exits in enumerate(batches):
        shares[number % 13 % 2].append(exits)
    return shares


def logged(output: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"(?<!\w){name}[ =]([\d.]+)", output)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> dict[str, tuple[Path, str]]:
    """The folder and the output of a training on one process, without interruption."""
    base = tmp_path_factory.mktemp("whole")
    return {name: (base / name, on_one(base / name, tiny_corpus, name).output) for name in TRAININGS}


LAST = Path("run") / "checkpoint_last.pt"


@trainings
def test_two_processes_compute_what_one_does(
    training: str, whole: dict[str, tuple[Path, str]], tmp_path: Path, tiny_corpus: Path
) -> None:
    """To the bit, random exits included: each process draws those of its own batches, as one does in turn."""
    folder, output = whole[training]
    commands = on_two(tmp_path, tiny_corpus, training)
    for command in commands:
        assert command.wait().status == 0, command.output
    assert_same_training(folder / LAST, tmp_path / LAST)
    for name, count in (("loss", UPDATES), ("halting_loss", UPDATES), ("oracle_exit", UPDATES), ("accuracy_2", 1)):
        one, two = logged(output, name), logged(commands[0].output, name)
        assert len(one) == len(two) >= count
        assert one == pytest.approx(two, abs=2e-3)
    first, second = (drawn(tmp_path, rank) for rank in range(2))
    if training == "mixed":
        assert len(first) == len(second) == UPDATES
        assert len({json.dumps(exits) for exits in first + second[:6]}) == UPDATES + 6
        del second[6]  # of the batch that it is given where there is none; it does not count
    assert (first, second) == by_process(drawn(folder))


@trainings
def test_a_killed_training_resumes_to_the_same_bits(
    training: str, whole: dict[str, tuple[Path, str]], tmp_path: Path, tiny_corpus: Path
) -> None:
    """SIGKILL to one of two processes ends the other; both go on as if nothing had been, with the same exits."""
    survivor, victim = on_two(tmp_path, tiny_corpus, training, "--max-update", 1000)
    survivor.wait_for("num_updates=5")
    victim.process.kill()
    assert victim.wait().status == -9
    assert survivor.wait().status == 1
    assert "another process of this training ended" in survivor.errors[-1]
    updates = 3
    for path in (tmp_path / "run").iterdir():  # a slow machine may have come further than it is to be compared
        if path.name != f"checkpoint_1_{updates}.pt":
            path.unlink()
    for rank in range(2):
        (tmp_path / f"spy_exits/exits{rank}.jsonl").unlink(missing_ok=True)
    commands = on_two(tmp_path, tiny_corpus, training)
    for command in commands:
        assert command.wait().status == 0, command.output
    assert f"(epoch 1 @ {updates} updates)" in commands[0].output
    folder, _ = whole[training]
    assert_same_training(folder / LAST, tmp_path / LAST)
    assert drawn(tmp_path) == by_process(drawn(folder))[0][updates:]


@pytest.mark.parametrize(
    ("precision", "training"),
    [
        ("--bf16", "mixed"),
        ("--memory-efficient-bf16", "aligned"),
        ("--fp16", "aligned"),
        ("--memory-efficient-fp16", "mixed"),
    ],
)
def test_half_precision_trains_resumes_and_decodes(
    precision: str, training: str, whole: dict[str, tuple[Path, str]], tmp_path: Path, tiny_corpus: Path
) -> None:
    """It begins with the losses of single precision, and a resumed one ends with the same bits."""
    half = [precision, "--fp16-init-scale", 4, "--max-update", 6]
    output = on_one(tmp_path / "whole", tiny_corpus, training, *half).output
    for name in ("loss", "halting_loss"):
        expected = logged(whole[training][1], name)[:2]
        assert logged(output, name)[:2] == pytest.approx(expected, rel=0.05)
    resumed = tmp_path / "resumed"
    (resumed / "run").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/run/checkpoint_1_3.pt", resumed / LAST)
    on_one(resumed, tiny_corpus, training, *half)
    assert_same_training(tmp_path / "whole" / LAST, resumed / LAST)
    assert drawn(resumed) == drawn(tmp_path / "whole")[6:]
    decoded = generate(tmp_path / "log", tiny_corpus, resumed / LAST, {"exit_policy": "halting"})
    assert len(translations(decoded)) == 20
