"""recipes/train.sh: run folders, exact resumption after kills, several processes, and what it refuses."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fairseq_compat import checkpoints
from recipes.training.run import Run
from tests.support.processes import with_standard_input
from tests.support.recipe_runs import ROOT, files, recipe, recipe_environment, refused


def last(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / "toy/mini/checkpoints/checkpoint_last.pt")


def losses(folder: Path) -> list[tuple[Any, ...]]:
    """(kind, updates, loss) of a run's progress, without the means of epochs: fairseq reports those after saving.

    A training killed in between never reports that one.
    """
    figures = Run(folder / "toy/mini").figures()
    return [(each.kind, each.updates, each.loss) for each in figures if each.kind != "epoch"]


def assert_same_training(one: Path, other: Path) -> None:
    """Final parameters and the optimizer's state are the same bits, and so is every loss that was output."""
    first, second = last(one), last(other)
    assert first["model"].keys() == second["model"].keys()
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    moments, others = first["last_optimizer_state"]["state"], second["last_optimizer_state"]["state"]
    assert moments.keys() == others.keys()
    assert len(moments) > 0
    for key, state in moments.items():
        assert torch.equal(state["exp_avg_sq"], others[key]["exp_avg_sq"])
    assert losses(one) == losses(other)


# --- a finished run --------------------------------------------------------------------------------


def test_a_run_leaves_its_records(finished: Path, data: Path) -> None:
    run = Run(finished / "toy/mini")
    record = run.record()
    assert record is not None
    assert record.status == "finished"
    assert record.reason == "4 epochs"
    assert record.seed == 1
    assert record.processes == 1
    assert record.device == "cpu"
    assert record.parameters == sum(v.numel() for v in unshared(last(finished)["model"]))
    assert record.versions["torch"] == torch.__version__
    assert record.corpus_fingerprint == json.loads((data / "toy/corpus.json").read_text())["fingerprint"]
    assert "-m fairseq_compat.train" in record.command
    assert "--update-epoch-batch-itr True" in record.command
    kinds = [figures.kind for figures in run.figures()]
    assert kinds.count("valid") == 4
    assert kinds.count("epoch") == 4
    assert kinds.count("train") > 4
    assert record.updates == run.figures()[-1].updates
    seconds = [figures.seconds for figures in run.figures()]
    assert seconds == sorted(seconds)
    names = {path.name for path in run.checkpoints.iterdir()}
    assert names == {f"checkpoint{x}.pt" for x in ("1", "2", "3", "4", "_best", "_last")}
    log = run.log_path.read_text(encoding="utf-8")
    assert "valid loss" in log
    assert "elapsed" in log


def unshared(model: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Parameters of a Transformer's checkpoint, tied ones once."""
    for name, value in model.items():
        tied = name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
        if not tied and not name.endswith((".version", "._float_tensor")):
            yield value


def test_a_finished_run_is_left_alone(finished: Path, data: Path, mini: Path) -> None:
    before = files(finished)
    done = recipe("train", "toy", mini, "--data", data, "--runs", finished, "--cpu")
    assert done.returncode == 0
    assert "is finished (4 epochs" in done.stdout
    assert "recipes/evaluate.sh toy" in done.stdout
    assert files(finished) == before


def test_dry_run_prints_command_and_size(data: Path, mini: Path, finished: Path, tmp_path: Path) -> None:
    done = recipe("train", "toy", mini, "--data", data, "--runs", tmp_path / "runs", "--dry-run", "--cpu",
                  "--", "--lr", "0.5", "--dropout=0.7")  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = Run(finished / "toy/mini").record()
    assert record is not None
    assert f"parameters: {record.parameters:,}" in done.stdout
    assert "--lr 0.5" in done.stdout
    assert "--dropout 0.7" in done.stdout
    assert "--max-tokens 400" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_text_that_does_not_fit(data: Path, mini: Path, tmp_path: Path) -> None:
    call = ["toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu", "--dry-run"]
    refused(recipe("train", *call, "--", "--max-source-positions", "1"), "no training sentence fits", "raise them")


def test_dry_run_names_an_unknown_option(data: Path, mini: Path, tmp_path: Path) -> None:
    done = recipe("train", "toy", mini, "--data", data, "--runs", tmp_path / "runs", "--dry-run", "--",
                  "--learning-rat", "1")  # fmt: skip
    refused(done, "--learning-rat")


# --- interruptions ---------------------------------------------------------------------------------


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """recipes/train.sh in a process group of its own."""
    return subprocess.Popen(
        [str(ROOT / "recipes/train.sh"), *arguments],
        env=recipe_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Shells start what runs in the background with Ctrl-C ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What the process prints up to a line that matches."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if re.search(pattern, line):
            return output
    raise AssertionError(f"no line matches {pattern!r} in:\n{output}")


def trainers(folder: Path) -> list[int]:
    """Trainings with the lock of this run folder as their standard input, in the order they were started."""
    return with_standard_input(folder / "toy/mini/.lock")


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while trainers(folder):
        assert time.monotonic() < deadline, f"processes {trainers(folder)} were left behind"
        time.sleep(0.1)


def test_a_killed_run_resumes_to_the_same_bits(finished: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    """Kill the launcher, the training, and both at once, at different updates; then let it end."""
    call = ["toy", str(mini), "--data", str(data), "--runs", str(tmp_path / "runs"), "--cpu"]
    for victim, when in (("launcher", "update 4 "), ("training", "update 12  valid"), ("both", "update 20 ")):
        process = start(call)
        output = read_until(process, when)
        if victim == "both":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid if victim == "launcher" else trainers(tmp_path / "runs")[0], signal.SIGKILL)
        rest = process.stdout.read() if process.stdout else ""
        process.wait()
        if victim == "training":
            assert "error: training stopped: ended by signal 9" in rest, output + rest
            record = Run(tmp_path / "runs/toy/mini").record()
            assert record is not None
            assert record.status == "failed"
    done = recipe("train", *call)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from checkpoint" in done.stdout
    assert_same_training(finished, tmp_path / "runs")
    wait_until_gone(tmp_path / "runs")


def test_a_disk_that_fills_loses_nothing(finished: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    """/dev/full stands for the place of the third epoch's checkpoint."""
    call: list[object] = ["toy", mini, "--data", data, "--runs", tmp_path, "--cpu"]
    assert recipe("train", *call, "--", "--max-epoch", "2").returncode == 0
    folder = tmp_path / "toy/mini/checkpoints"
    before = files(folder)
    (folder / f"checkpoint3.pt{checkpoints.TEMPORARY_SUFFIX}").symlink_to("/dev/full")
    refused(recipe("train", *call), "checkpoint3.pt: No space left on device", "earlier checkpoints are untouched")
    assert files(folder) == before
    done = recipe("train", *call)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_training(tmp_path, finished)


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_an_interruption_ends_everything_and_says_how_to_go_on(
    number: int, reason: str, data: Path, mini: Path, tmp_path: Path
) -> None:
    call = ["toy", str(mini), "--data", str(data), "--runs", str(tmp_path / "runs"), "--cpu"]
    process = start([*call, "--", "--max-epoch", "1000"])
    read_until(process, "update 6  valid")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert "repeat the same call to resume" in rest
    assert "Traceback" not in rest
    wait_until_gone(tmp_path / "runs")
    record = Run(tmp_path / "runs/toy/mini").record()
    assert record is not None
    assert (record.status, record.reason) == ("interrupted", reason)
    # More epochs or fewer are the same training: it goes on, and the limit is met at once.
    done = recipe("train", *call, "--", "--max-epoch", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Finished: 1 epochs" in done.stdout


def test_a_second_training_is_kept_out(data: Path, mini: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs/toy/mini")
    run.create()
    with run.lock():
        done = recipe("train", "toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu")
        refused(done, f"another training works in {run.folder} (process {os.getpid()} on ")
        assert not run.record_path.exists()


def test_minutes_are_those_of_all_resumptions(data: Path, mini: Path, tmp_path: Path) -> None:
    call = ["toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu", "--minutes"]
    done = recipe("train", *call, "0.0001")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Finished: 0.0001 minutes of training" in done.stdout
    run = Run(tmp_path / "runs/toy/mini")
    first = run.record()
    assert first is not None
    assert first.updates == 1
    # No minute is left: one more update is made before that is seen.
    done = recipe("train", *call, "0.0002")
    assert done.returncode == 0, done.stdout + done.stderr
    second = run.record()
    assert second is not None
    assert second.updates == 2
    assert second.seconds is not None
    assert second.seconds > (first.seconds or 0) > 0


# --- several processes -----------------------------------------------------------------------------


def test_two_processes_train_like_one_with_twice_the_batches(data: Path, mini: Path, tmp_path: Path) -> None:
    for folder, extra in (("two", ["--processes", "2"]), ("one", ["--cpu", "--", "--update-freq", "2"])):
        done = recipe("train", "toy", mini, "--data", data, "--runs", tmp_path / folder, *extra)
        assert done.returncode == 0, done.stdout + done.stderr
    record = Run(tmp_path / "two/toy/mini").record()
    assert record is not None
    assert "torch.distributed.run" in record.command
    assert record.processes == 2
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    assert one["optimizer_history"][-1]["num_updates"] == two["optimizer_history"][-1]["num_updates"] > 0


def test_one_of_two_processes_killed_ends_the_other(data: Path, mini: Path, tmp_path: Path) -> None:
    call = ["toy", str(mini), "--data", str(data), "--runs", str(tmp_path / "runs"), "--processes", "2"]
    process = start([*call, "--", "--max-epoch", "1000"])
    read_until(process, "update 6 ")
    # torchrun itself, then its two workers.
    os.kill(trainers(tmp_path / "runs")[-1], signal.SIGKILL)
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 1, rest
    assert "error: training stopped" in rest
    wait_until_gone(tmp_path / "runs")


# --- refusals --------------------------------------------------------------------------------------


def test_other_options_are_refused_for_an_existing_run(copied: Path, data: Path, mini: Path) -> None:
    before = files(copied)
    call = ["toy", mini, "--data", data, "--runs", copied, "--cpu"]
    refused(recipe("train", *call, "--", "--lr", "0.02"), "--lr 0.01 (now 0.02)", "--force")
    refused(recipe("train", *call, "--seed", "7"), "--seed 1 (now 7)", "--force")
    assert files(copied) == before


def test_another_corpus_is_refused_for_an_existing_run(copied: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    description = tmp_path / "data/toy/corpus.json"
    description.write_text(description.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    before = files(copied)
    for script, extra in (("train", ["--cpu"]), ("evaluate", [])):
        done = recipe(script, "toy", mini, "--data", tmp_path / "data", "--runs", copied, *extra)
        refused(done, "another state of the corpus", "--force")
    assert files(copied) == before


def test_force_with_wrong_options_removes_nothing(copied: Path, data: Path, mini: Path) -> None:
    before = files(copied)
    call = ["toy", mini, "--data", data, "--runs", copied, "--cpu", "--force", "--"]
    refused(recipe("train", *call, "--encoder-embed-dimm", "64"), "--encoder-embed-dimm")
    refused(recipe("train", *call, "--encoder-attention-heads", "5"), "cannot be built")
    assert files(copied) == before


def test_force_starts_from_scratch_and_removes_its_own_files_only(copied: Path, data: Path, mini: Path) -> None:
    (copied / "toy/mini/evaluation").mkdir()
    (copied / "toy/mini/evaluation/scores.json").write_text("{}")
    (copied / "toy/mini/.evaluation.new.x").mkdir()
    (copied / "toy/mini/calibration-confidence-mean-exit-3.json").write_text("{}")
    (copied / "toy/mini/exits.md").write_text("| |")
    (copied / "toy/mini/notes.txt").write_text("mine")
    (copied / "toy/mini/checkpoints").rename(copied / "scratch")  # as where checkpoints have a disk of their own
    (copied / "toy/mini/checkpoints").symlink_to(copied / "scratch")
    (copied / "toy/other").mkdir()
    call = ["toy", mini, "--data", data, "--runs", copied, "--cpu", "--force", "--", "--max-epoch", "1"]
    done = recipe("train", *call, "--lr", "0.02")
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(copied / "toy/mini")
    record = run.record()
    assert record is not None
    assert record.identity["--lr"] == "0.02"
    assert not (run.checkpoints / "checkpoint4.pt").exists()
    assert (copied / "scratch/checkpoint_last.pt").exists()
    assert not (run.folder / "exits.md").exists()
    goes_on = ["recipes/train.sh", *(str(word) for word in call if word != "--force"), "--lr", "0.02"]
    assert run.train_call() == shlex.join(goes_on)
    assert not [*run.folder.glob("evaluation*"), *run.folder.glob(".evaluation*"), *run.folder.glob("calibration*")]
    assert (run.folder / "notes.txt").read_text() == "mine"
    assert (copied / "toy/other").is_dir()


def test_fine_tuning_has_its_own_patience_and_time(finished: Path, data: Path, mini: Path, tmp_path: Path) -> None:
    """The training that it begins with had taken long and had not improved for long."""
    state = checkpoints.load(finished / "toy/mini/checkpoints/checkpoint_last.pt")
    state["extra_state"]["early_stopping"] = {"best": 0.0, "num_runs": 5}
    state["extra_state"]["previous_training_time"] = 1e6
    checkpoints.save(state, tmp_path / "tired.pt")
    done = recipe("train", "toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu", "--",
                  "--finetune-from-model", tmp_path / "tired.pt", "--max-epoch", "2", "--patience", "2")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "begins with the weights of tired.pt" in done.stdout
    assert "Finished: 2 epochs" in done.stdout
    record = Run(tmp_path / "runs/toy/mini").record()
    assert record is not None
    assert record.seconds is not None
    assert record.seconds < 1e5


def test_results_without_checkpoints_are_kept(copied: Path, data: Path, mini: Path) -> None:
    """Checkpoints may have been moved away to free the disk."""
    shutil.rmtree(copied / "toy/mini/checkpoints")
    (copied / "toy/mini/evaluation-valid").mkdir()
    (copied / "toy/mini/evaluation-valid/scores.json").write_text("{}")
    before = files(copied)
    done = recipe("train", "toy", mini, "--data", data, "--runs", copied, "--cpu")
    refused(done, "evaluation-valid", "no checkpoints", "--force")
    assert files(copied) == before


def test_a_failed_start_may_be_corrected(data: Path, mini: Path, tmp_path: Path) -> None:
    """Options that cannot train leave nothing that stands in the way of better ones."""
    call = ["toy", mini, "--data", data, "--runs", tmp_path / "runs", "--cpu", "--", "--max-epoch", "1"]
    done = recipe("train", *call, "--criterion", "nonsense")
    refused(done, "nonsense", "train.log")
    done = recipe("train", *call)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_of_an_old_version_with_a_damaged_record_names_the_command(copied: Path, data: Path, mini: Path) -> None:
    path = copied / "toy/mini/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": "two"}))
    before = files(copied)
    done = recipe("train", "toy", mini, "--data", data, "--runs", copied, "--cpu")
    refused(done, "run.json: field threads", f"recipes/train.sh toy mini --runs {copied} --force")
    assert files(copied) == before


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "unknown corpus": (["nowhere", "{mini}"], ["nowhere", "recipes/prepare.sh"]),
    "corpus that is a path": (["../toy", "{mini}"], ["CORPUS", "../toy"]),
    "unknown model": (["toy", "nonsense"], ["unknown model 'nonsense'"]),
    "missing model file": (["toy", "/nowhere/x.yaml"], ["/nowhere/x.yaml"]),
    "no model": (["toy"], ["MODEL"]),
    "unknown option": (["toy", "{mini}", "--fast"], ["--fast"]),
    "minutes of zero": (["toy", "{mini}", "--minutes", "0"], ["--minutes", "above 0"]),
    "minutes of nan": (["toy", "{mini}", "--minutes", "nan"], ["--minutes", "above 0"]),
    "minutes as text": (["toy", "{mini}", "--minutes", "long"], ["--minutes"]),
    "negative seed": (["toy", "{mini}", "--seed", "-1"], ["--seed", "from 0"]),
    "no processes": (["toy", "{mini}", "--processes", "0"], ["--processes", "from 1"]),
    "too many processes": (["toy", "{mini}", "--processes", "1000"], ["--processes 1000", "CPU cores"]),
    "GPUs and CPU": (["toy", "{mini}", "--gpus", "1", "--cpu"], ["--gpus", "--cpu"]),
    "GPUs that are not there": (["toy", "{mini}", "--gpus", "999"], ["--gpus 999", "usable GPUs"]),
    "processes and GPUs": (["toy", "{mini}", "--processes", "2", "--gpus", "2"], ["--processes", "--gpus"]),
    "option of the recipe": (["toy", "{mini}", "--", "--save-dir", "/tmp/x"], ["--save-dir", "--runs"]),
    "test set for validation": (["toy", "{mini}", "--", "--valid-subset", "test"], ["--valid-subset", "no test set"]),
    "seed after --": (["toy", "{mini}", "--", "--seed", "3"], ["--seed", "before the --"]),
    "minutes after --": (["toy", "{mini}", "--", "--minutes", "5"], ["--minutes", "before the --"]),
    "force after --": (["toy", "{mini}", "--", "--force"], ["--force", "before the --"]),
    "help after --": (["toy", "{mini}", "--", "--help"], ["--help", "fairseq-train --help shows it"]),
    "no epochs": (["toy", "{mini}", "--", "--max-epoch", "0"], ["--max-epoch", "at least 1", "0"]),
    "updates as text": (["toy", "{mini}", "--", "--max-update", "many"], ["--max-update", "at least 1", "many"]),
    "patience without number": (["toy", "{mini}", "--", "--patience"], ["--patience", "at least 1"]),
    "value without option": (["toy", "{mini}", "--", "0.1"], ["'0.1'", "--lr"]),
    "runs is a file": (["toy", "{mini}", "--runs", "{mini}"], ["{mini}", "--runs"]),
    "runs is not writable": (["toy", "{mini}", "--runs", "/proc/nowhere"], ["/proc/nowhere", "--runs"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_are_refused(case: str, data: Path, mini: Path, tmp_path: Path) -> None:
    arguments, words = WRONG[case]
    call = [argument.format(mini=mini) for argument in arguments]
    split = call.index("--") if "--" in call else len(call)
    folders = ["--data", str(data)] + ([] if "--runs" in call else ["--runs", str(tmp_path / "runs")])
    before = files(data)
    refused(recipe("train", *call[:split], *folders, *call[split:]), *[w.format(mini=mini) for w in words])
    assert files(data) == before
    assert not (tmp_path / "runs").exists()


def broken_corpus(kind: str, folder: Path) -> str:
    """Break the corpus in `folder` in one way; what the message must name."""
    if kind == "corpus.json is cut short":
        (folder / "corpus.json").write_text((folder / "corpus.json").read_text()[:100])
        return "corpus.json"
    if kind == "corpus.json lacks the languages":
        (folder / "corpus.json").write_text("{}")
        return "corpus.json"
    name = {
        "dictionary is missing": "bin/dict.de.txt",
        "dictionary is empty": "bin/dict.en.txt",
        "dictionary is cut short": "bin/dict.de.txt",
        "training data are cut short": "bin/train.de-en.en.bin",
        "sub-word model is missing": "sentencepiece.model",
    }[kind]
    path = folder / name
    if "missing" in kind:
        path.unlink()
    else:
        path.write_bytes(b"" if "empty" in kind else path.read_bytes()[:-20])
    return name


@pytest.mark.parametrize(
    "kind",
    [
        "corpus.json is cut short",
        "corpus.json lacks the languages",
        "dictionary is missing",
        "dictionary is empty",
        "dictionary is cut short",
        "training data are cut short",
        "sub-word model is missing",
    ],
)
def test_broken_corpora_are_refused(kind: str, data: Path, mini: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    name = broken_corpus(kind, tmp_path / "data/toy")
    done = recipe("train", "toy", mini, "--data", tmp_path / "data", "--runs", tmp_path / "runs", "--cpu")
    refused(done, name, "recipes/prepare.sh", "--force")
    # Preparing does not replace a folder that has no readable corpus.json.
    assert ("remove the folder" in done.stderr) == (name == "corpus.json")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"max-epoch": None}}, ["nothing would end", "--minutes"]),
        ({"train": {"arch": None}}, ["train.arch"]),
        ({"train": {"save-dir": "x"}}, ["--save-dir", "--runs"]),
        ({"train": {"lr": [1, 2]}}, ["train.lr"]),
        ({"trane": {}}, ["trane", "train"]),
        ({"user_dir": "nowhere_at_all"}, ["nowhere_at_all", "user_dir"]),
    ],
)
def test_wrong_model_files_are_refused(
    change: dict[str, Any], words: list[str], data: Path, mini: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(mini.read_text())
    for key, value in change.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        if isinstance(value, dict):
            content[key] = {k: v for k, v in content[key].items() if not (k == "arch" and v is None)}
    model = tmp_path / "model.yaml"
    model.write_text(yaml.safe_dump(content))
    done = recipe("train", "toy", model, "--data", data, "--runs", tmp_path / "runs", "--cpu")
    refused(done, "model.yaml", *words)
    assert not (tmp_path / "runs").exists()


def test_torchrun_around_the_recipe_is_refused(data: Path, mini: Path, tmp_path: Path) -> None:
    call = ["toy", mini, "--data", data, "--runs", tmp_path / "runs"]
    done = recipe("train", *call, environment={"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    refused(done, "RANK", "--processes N")


def test_checkpoints_without_record_are_not_touched(copied: Path, data: Path, mini: Path) -> None:
    (copied / "toy/mini/run.json").unlink()
    before = files(copied)
    refused(recipe("train", "toy", mini, "--data", data, "--runs", copied, "--cpu"), "run.json", "--force")
    assert files(copied) == before
