"""Run folders: the schema of run.json, records of the old form, the lock."""

import json
import subprocess
from pathlib import Path

import pytest

from recipes.training.run import Run, RunRecord
from thoth_core.errors import UserError

# As commit 83b2508 wrote it.
OLD = {
    "corpus": "toy", "model": "mini", "status": "failed", "reason": "it saved nothing",
    "call": "recipes/train.sh toy mini --force -- --lr '0.1 0.2'", "command": "python -m fairseq_host.train x",
    "commit": None, "versions": {"python": "3.11.7"}, "seed": 1, "corpus_fingerprint": "f00", "device": "cpu",
    "processes": 1, "threads": 2, "limits": {"minutes": 1.5, "max-epoch": 4, "max-update": "70"},
    "identity": {"--lr": "0.1", "--share-all-embeddings": "True", "user_dir": None, "--seed": 1, "processes": 1,
                 "corpus fingerprint": "f00"},
    "epoch": None, "updates": None, "seconds": None, "best_valid_loss": None, "best_updates": None,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "toy/mini")
    run.create()
    run.record_path.write_text(json.dumps(OLD))
    return run


def test_a_record_of_the_old_form_opens(run: Run) -> None:
    record = run.record()
    assert record is not None
    assert record.limits == OLD["limits"]
    assert record.parameters is None
    run.write(record.changed(status="finished", updates=7))
    again = run.record()
    assert again is not None
    assert (again.status, again.updates, again.identity) == ("finished", 7, OLD["identity"])


def test_the_call_that_continues_has_no_force(run: Run) -> None:
    assert run.train_call() == "recipes/train.sh toy mini -- --lr '0.1 0.2'"
    run.record_path.write_text("{}")
    assert run.train_call() is None
    run.record_path.unlink()
    assert run.train_call() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), (json.dumps({**OLD, "seed": "one"}), "field seed"), (json.dumps({**OLD, "sed": 1}), "sed"),
     (json.dumps({**OLD, "status": "odd"}), "field status"), ("{}", "field corpus is missing")],
)  # fmt: skip
def test_a_damaged_record_is_refused_with_the_command_that_starts_again(text: str, words: str, run: Run) -> None:
    run.record_path.write_text(text)
    runs = run.folder.parent.parent
    with pytest.raises(UserError, match=rf"run.json: .*{words}.*: recipes/train.sh toy mini --runs {runs} --force"):
        run.record()


def test_other_values_are_checked(run: Run) -> None:
    record = RunRecord.read(run.record_path, remedy="")
    with pytest.raises(ValueError, match="updates"):
        record.changed(updates="many")


def test_a_training_without_launcher_keeps_its_folder(run: Run) -> None:
    """It is waited for, and named if it does not end; nothing is killed."""
    with run.lock() as lock:
        orphan = subprocess.Popen(["sleep", "100"], stdin=lock.descriptor)
        lock.add_holder(orphan.pid)
    message = rf"another training works in {run.folder} \(.*process {orphan.pid} on \S+\); wait for it to end, or stop"
    with pytest.raises(UserError, match=message), run.lock(patience=0.5):
        pass
    assert orphan.poll() is None
    orphan.terminate()
    with run.lock():
        orphan.wait()
