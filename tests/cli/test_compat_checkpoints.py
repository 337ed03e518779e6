"""Safe loading, atomic saving and averaging of checkpoints; see fairseq_compat/checkpoints.py."""

import argparse
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import fairseq_compat
from fairseq_compat import averaging, checkpoints
from fairseq_compat.checkpoints import CheckpointError
from tests.support.command_lines import TINY, run


class RunsCode:
    """Unpickling this creates the file `witness`."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def training_state(updates: int = 7, **model: torch.Tensor) -> dict:
    """A checkpoint as fairseq's trainer makes it after --eval-bleu, its models' options in a Namespace."""
    return {
        "args": None,
        "cfg": {"model": argparse.Namespace(_name="transformer"), "task": {"_name": "translation"}, "common": {}},
        "model": model or {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)},
        "optimizer_history": [{"num_updates": updates, "optimizer_name": "Adam", "lr_scheduler_state": {}}],
        "last_optimizer_state": {"state": {}, "param_groups": []},
        "task_state": {},
        "extra_state": {
            "train_iterator": {"epoch": 1},
            "metrics": [
                ("valid", [(0, "_bleu_counts", "SumMeter", {"sum": numpy.array([3, 2, 1, 0])})]),
                ("valid", [(0, "bleu", "AverageMeter", {"sum": numpy.float64(1.5), "n": numpy.int64(2)})]),
            ],
        },
    }


def test_loads_what_bare_torch_refuses(tmp_path):
    torch.save(training_state(), tmp_path / "c.pt")
    code = f"import torch; torch.load({str(tmp_path / 'c.pt')!r}, weights_only=True)"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Unsupported global" in bare.stderr  # the fault

    state = checkpoints.load(tmp_path / "c.pt")
    assert state["cfg"]["model"]._name == "transformer"
    (_, [counts]), (_, [bleu]) = state["extra_state"]["metrics"]
    assert counts[3]["sum"].tolist() == [3, 2, 1, 0]
    assert bleu[3] == {"sum": 1.5, "n": 2}


def test_what_a_training_saves_loads_without_an_allow_list(tmp_path, tiny_corpus):
    """A model without a dataclass, and arrays among the metrics: fairseq's own commands load it safely."""
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 5}']
    save = ["--max-update", 3, "--save-interval-updates", 2, "--save-dir", tmp_path]
    train = run(tmp_path / "log", "fairseq_compat.train", tiny_corpus, *TINY, *bleu, *save)
    assert train.status == 0, train.output
    path = tmp_path / "checkpoint_last.pt"
    code = (
        f"import torch; c = torch.load({str(path)!r}); print(c['cfg']['model']['_name'], c['extra_state']['metrics'])"
    )
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert bare.stdout.startswith("transformer "), bare.stderr
    assert "_bleu_counts" in bare.stdout
    generate = run(tmp_path / "log", "fairseq-generate", tiny_corpus, "--path", path, "--cpu")
    assert generate.status == 0, generate.output
    resumed = run(tmp_path / "log", "fairseq_compat.train", tiny_corpus, *TINY, *bleu, *save, "--max-update", 5)
    assert resumed.status == 0, resumed.output
    assert "num_updates=5" in resumed.output


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, zip_format, variable):
    if variable is not None:  # torch's switch that turns safe loading off
        monkeypatch.setenv(variable, "1")
    path, witness = tmp_path / "hostile.pt", tmp_path / "witness"
    state = {**training_state(), "extra": RunsCode(witness)}
    torch.save(state, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(CheckpointError, match=r"hostile.pt is refused: it holds \w+.mkdir, which could run code"):
        checkpoints.load(path)
    with pytest.raises(CheckpointError):
        averaging.average([path])
    assert checkpoints.newest_readable(tmp_path) is None
    assert not witness.exists()
    pickle.loads(pickle.dumps(state))  # the attack is real
    assert witness.exists()


def test_command_lines_refuse_code_in_a_pickle(tmp_path, tiny_corpus):
    witness = tmp_path / "witness"
    path = tmp_path / "hostile.pt"
    torch.save({**training_state(), "extra": RunsCode(witness)}, path)
    save = ["--save-dir", tmp_path / "save", "--max-update", 1]
    train = run(tmp_path / "log", "fairseq_compat.train", tiny_corpus, *TINY, *save, "--restore-file", path)
    assert train.status == 1
    assert len(train.errors) == 1
    assert "hostile.pt is refused" in train.errors[0]
    assert "Traceback" not in train.output
    generate = run(tmp_path / "log", "fairseq-generate", tiny_corpus, "--path", path, "--cpu")
    assert generate.status == 1
    assert not witness.exists()

    from fairseq.models.transformer import TransformerModel

    fairseq_compat.install()
    with pytest.raises(CheckpointError, match="refused"):
        TransformerModel.from_pretrained(str(tmp_path), "hostile.pt", str(tiny_corpus))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[:1], "truncated or damaged"),
        (lambda data: data[: len(data) // 2], "truncated or damaged"),
        (lambda data: data[:-1], "truncated or damaged"),
        (lambda data: bytes(len(data)), "truncated or damaged"),
        (lambda data: b"no checkpoint at all\n", "truncated or damaged"),
        (lambda data: pickle.dumps([1, 2], protocol=2), "truncated or damaged"),
        # One wrong bit in the tensors, which torch.load does not notice.
        (lambda data: data.replace(numpy.float32(4).tobytes(), numpy.float32(4.5).tobytes()), "truncated or damaged"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, damage, message):
    path = tmp_path / "checkpoint1.pt"
    checkpoints.save(training_state(), path)
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    with pytest.raises(CheckpointError, match=f"checkpoint {path} .*{message}"):
        checkpoints.load(path)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.pt does not exist"):
        checkpoints.load(tmp_path / "no.pt")
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoints.load(tmp_path)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        checkpoints.load(tmp_path / "list.pt")


def test_legacy_format_loads(tmp_path):
    torch.save(training_state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(checkpoints.load(tmp_path / "old.pt")["model"]["weight"], torch.arange(6.0).view(2, 3))


def test_save_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "c.pt"
    for updates in (1, 2):
        checkpoints.save(training_state(updates), path)
        assert checkpoints.load(path)["optimizer_history"][0]["num_updates"] == updates
    checkpoints.copy_file(path, tmp_path / "d.pt")
    assert (tmp_path / "d.pt").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["c.pt", "d.pt"]


@pytest.mark.parametrize("write", ["save", "copy"])
def test_full_disk_leaves_the_old_file(tmp_path, write):
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    path = tmp_path / "checkpoint_last.pt"
    checkpoints.save(training_state(1), path)
    before = path.read_bytes()
    checkpoints.save(training_state(2), tmp_path / "checkpoint1.pt")
    path.with_name(path.name + checkpoints.TEMPORARY_SUFFIX).symlink_to("/dev/full")
    writes = {
        "save": lambda: checkpoints.save(training_state(2), path),
        "copy": lambda: checkpoints.copy_file(tmp_path / "checkpoint1.pt", path),
    }
    with pytest.raises(CheckpointError, match=rf"{path}: No space left on device; earlier checkpoints are untouched"):
        writes[write]()
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoint1.pt", "checkpoint_last.pt"]


def test_unwritable_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no/c\.pt: No such file or directory"):
        checkpoints.save(training_state(), tmp_path / "no" / "c.pt")


@pytest.mark.parametrize("fixed", [False, True], ids=["fairseq", "fixed"])
def test_copy_that_breaks_off(tmp_path, fixed):
    """Half way, at a limit of file size: fairseq's copy to checkpoint_last.pt destroys the old one."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    script = tmp_path / "fill.py"
    script.write_text(
        "import resource, sys, torch\n"
        "from fairseq import checkpoint_utils\n"
        "from fairseq.file_io import PathManager\n"
        "if sys.argv[2] == 'True':\n"
        "    import fairseq_compat; fairseq_compat.install()\n"
        "last, new = sys.argv[1] + '/checkpoint_last.pt', sys.argv[1] + '/checkpoint1.pt'\n"
        "state = lambda n: {'model': {'w': torch.zeros(n)}, 'optimizer_history': []}\n"
        "checkpoint_utils.torch_persistent_save(state(50_000), last)\n"
        "checkpoint_utils.torch_persistent_save(state(150_000), new)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    PathManager.copy(new, last, overwrite=True)\n"
        "except Exception as error:\n"
        "    print('failed:', error)\n"
        "import os; print(sorted(os.listdir(sys.argv[1])))\n"
        "print('read', torch.load(last)['model']['w'].numel())\n"
    )
    result = subprocess.run([sys.executable, script, folder, str(fixed)], capture_output=True, text=True)
    assert "File too large" in result.stdout, result.stderr
    assert "['checkpoint1.pt', 'checkpoint_last.pt']" in result.stdout
    if fixed:
        assert "read 50000" in result.stdout
    else:
        assert "read" not in result.stdout
        assert result.returncode != 0


def test_newest_readable(tmp_path):
    assert checkpoints.newest_readable(tmp_path) is None
    for updates, name in ((10, "checkpoint1.pt"), (30, "checkpoint_2_30.pt"), (20, "checkpoint_best.pt")):
        checkpoints.save(training_state(updates), tmp_path / name)
    assert checkpoints.newest_readable(tmp_path) == tmp_path / "checkpoint_2_30.pt"
    (tmp_path / "checkpoint_2_30.pt").write_bytes(b"")
    averaged = averaging.average([tmp_path / "checkpoint1.pt"])
    averaged["optimizer_history"][0]["num_updates"] = 99
    checkpoints.save(averaged, tmp_path / "checkpoint_average.pt")  # training cannot go on from it
    assert checkpoints.newest_readable(tmp_path) == tmp_path / "checkpoint_best.pt"


def test_average(tmp_path):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"checkpoint{number}.pt")
        model = {
            "half": torch.tensor([1.0, 2.0**-8 * number]).bfloat16(),
            "double": torch.tensor([1.0 + 1e-12 * number], dtype=torch.float64),
            "steps": torch.tensor(number),
        }
        checkpoints.save(training_state(number, **model), paths[-1])
    state = averaging.average(paths)
    assert state["model"]["half"].dtype == torch.float32
    assert state["model"]["half"].tolist() == [1.0, 2.0**-8]
    assert state["model"]["double"].dtype == torch.float64
    assert state["model"]["double"].item() == pytest.approx(1.0 + 1e-12, abs=1e-15)
    assert state["model"]["steps"].item() == 2
    assert "last_optimizer_state" not in state
    assert state["cfg"]["task"] == {"_name": "translation"}

    checkpoints.save(training_state(0, other=torch.zeros(1)), paths[1])
    with pytest.raises(CheckpointError, match=r"checkpoint0.pt and .*checkpoint1.pt cannot be averaged"):
        averaging.average(paths)
    with pytest.raises(CheckpointError, match="no checkpoints to average"):
        averaging.average([])


def test_a_plugin_that_is_not_loaded_is_named(tmp_path):
    from fairseq import checkpoint_utils

    fairseq_compat.install()
    state = training_state()
    state["cfg"] = {
        "model": {"_name": "of_a_plugin"},
        "task": {"_name": "translation"},
        "common": {"user_dir": "/somewhere/plugin"},
    }
    checkpoints.save(state, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"c\.pt has the model of_a_plugin, .* --user-dir plugin"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "c.pt"))
