"""One clear line for each of fairseq's confusing errors; see fairseq_compat/errors.py and data.py."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_compat import data, errors
from tests.conftest import binarise, write_toy_text
from tests.support.command_lines import TINY, run
from thoth_core.errors import UserError

SPLITS = ["train", "valid"]


def cut(name: str, size: int):
    """Cut a file of the data folder to `size` bytes."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def cut_dictionaries(folder: Path) -> None:
    for language in ("de", "en"):
        path = folder / f"dict.{language}.txt"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def drop_sentences(folder: Path) -> None:
    """Replace the German half of the validation set by another, of 7 sentences."""
    write_toy_text(folder / "text", valid=7)
    binarise(folder / "text", folder / "other")
    for kind in ("bin", "idx"):
        shutil.copy(folder / "other" / f"valid.de-en.de.{kind}", folder)


# What is done to the data folder; what fairseq says (None: it trains without a word); what we say.
FAULTS = {
    "empty bin": (cut("train.de-en.de.bin", 0), "cannot mmap an empty file", r"train\.de-en\.de\.bin is empty"),
    "empty idx": (cut("valid.de-en.en.idx", 0), "doesn't match expected format", r"valid\.de-en\.en\.idx is empty"),
    "cut bin": (
        cut("train.de-en.de.bin", 100),
        "buffer length|buffer size",
        r"train\.de-en\.de\.bin is truncated or damaged: 50 of 1,\d+ tokens",
    ),
    "cut idx": (cut("train.de-en.de.idx", 60), "", r"train\.de-en\.de\.idx is truncated or damaged"),
    "missing dictionary": (remove("dict.en.txt"), "No such file", r"dictionary .*dict\.en\.txt is missing"),
    "empty dictionary": (cut("dict.en.txt", 0), "", r"dictionary .*dict\.en\.txt is empty"),
    "cut dictionaries": (
        cut_dictionaries,
        "index out of range in self",
        r"dictionary .*dict\.de\.txt has 24 symbols, but train\.de-en\.de\.bin uses number 39: it is truncated",
    ),
    "dictionary cut in a line": (
        cut("dict.de.txt", 4),
        "Incorrect dictionary format|requires a joined dictionary",
        r"dictionary .*dict\.de\.txt",
    ),
    "missing split": (remove("valid.de-en.de.idx"), "Dataset not found", r"has no split valid for de-en"),
    "other sentences": (drop_sentences, "", r"split valid has 7 sentences in de but 20 in en"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_data_are_named(tmp_path, tiny_corpus, name):
    folder = tmp_path / "bin"
    shutil.copytree(tiny_corpus, folder)
    data.check_folder(folder, "de", "en", SPLITS)  # nothing to complain about
    data.check_folder(folder, None, None, SPLITS)
    damage, _, message = FAULTS[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        data.check_folder(folder, "de", "en", SPLITS)
    assert "prepare the data again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["empty bin", "cut bin", "cut dictionaries", "missing split"])
def test_what_fairseq_says(tmp_path, tiny_corpus, name):
    folder = tmp_path / "bin"
    shutil.copytree(tiny_corpus, folder)
    damage, fault, _ = FAULTS[name]
    damage(folder)
    command = run(tmp_path / "log", "fairseq-train", folder, *TINY, "--max-update", 1, "--save-dir", tmp_path / "save")
    assert command.status == 1
    assert fault.split("|")[0] in command.output
    assert "Traceback" in command.output


def test_reversed_languages(tmp_path, tiny_corpus):
    with pytest.raises(UserError, match=r"languages reversed: .* holds de-en, but --source-lang en --target-lang de"):
        data.check_folder(tiny_corpus, "en", "de", SPLITS)
    languages = ["--source-lang", "en", "--target-lang", "de", "--max-update", 1, "--save-dir", tmp_path / "save"]
    fairseq = run(tmp_path / "log", "fairseq-train", tiny_corpus, *TINY, *languages)
    assert fairseq.status == 0  # the fault
    ours = run(tmp_path / "log", "fairseq_compat.train", tiny_corpus, *TINY, *languages)
    assert ours.status == 1
    assert len(ours.errors) == 1
    assert "Traceback" not in ours.output


def test_folders(tmp_path, tiny_corpus):
    with pytest.raises(UserError, match=r"data folder .*no does not exist"):
        data.check_folder(tmp_path / "no", "de", "en", SPLITS)
    with pytest.raises(UserError, match="holds no binarised text"):
        data.check_folder(tmp_path, None, None, SPLITS)
    cfg = {
        "task": {"data": f"{tiny_corpus}:{tmp_path / 'no'}", "source_lang": "de", "target_lang": "en"},
        "dataset": {"train_subset": "train", "valid_subset": "valid,test", "disable_validation": False},
    }
    with pytest.raises(UserError, match=r"data folder .*no does not exist"):
        data.check(OmegaConf.create(cfg))
    cfg["task"] = {"data": str(tmp_path)}  # not a translation
    data.check(OmegaConf.create(cfg))


@pytest.mark.parametrize(
    ("options", "fault", "message"),
    [
        (
            ["--max-source-positions", 2],
            "list index out of range|dataset is empty",
            "every sentence of the training set",
        ),
        (["--max-tokens", 4], "should not exceed max_tokens=4", "--max-tokens 4 is less than the longest sentence"),
    ],
)
def test_everything_filtered(tmp_path, tiny_corpus, options, fault, message):
    rest = [*TINY, *options, "--max-update", 1, "--save-dir", tmp_path / "save"]
    fairseq = run(tmp_path / "log", "fairseq-train", tiny_corpus, *rest)
    assert fairseq.status == 1
    assert any(text in fairseq.output for text in fault.split("|"))
    ours = run(tmp_path / "log", "fairseq_compat.train", tiny_corpus, *rest)
    assert ours.status == 1
    assert message in ours.errors[0]
    assert "Traceback" not in ours.output


def raised(error: BaseException) -> BaseException:
    """`error` with a traceback, as a handler sees it."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("as it is"), "as it is"),
        (KeyError("_name"), "give its --user-dir"),
        (ValueError("cannot mmap an empty file"), "a file of the binarised data is empty or damaged"),
        (FileNotFoundError("Dataset not found: valid (data/bin)"), "data/bin has no split valid"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x/dict.en.txt"), "dictionary x/dict.en.txt is"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.yaml"), "x.yaml does not exist"),
        (OSError("Model file not found: x.pt"), "checkpoint x.pt does not exist"),
        (ValueError("Error merging override lr_scheduler.total_num_update=null"), "needs --total-num-update"),
        (AssertionError("Must specify batch size either with --max-tokens or --batch-size"), "give --max-tokens"),
        (Exception("Cannot load model parameters from checkpoint a/b.pt; please ensure"), "a/b.pt does not fit"),
        (AssertionError("Criterion does not match; please reset the optimizer (x)"), "another --criterion"),
        (FloatingPointError("gradients are Nan/Inf"), "diverged"),
        (FloatingPointError("Minimum loss scale reached (0.0001)."), "diverged under --fp16"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "lower --max-tokens"),
        (torch.OutOfMemoryError("CUDA out of memory."), "lower --max-tokens"),
        (RuntimeError("[gloo/x.cc:1] Connection closed by peer [127.0.0.1]"), "another process of this training"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device"),
    ],
)
def test_known_errors_are_explained(error, message):
    known = errors.explain(raised(error))
    assert known is not None
    assert message in str(known)
    assert "\n" not in str(known)


@pytest.mark.parametrize(
    "error", [ValueError("something else"), KeyError("name"), IndexError("list index out of range")]
)
def test_unknown_errors_are_left_alone(error):
    assert errors.explain(raised(error)) is None


def test_the_cause_is_found_behind_other_errors():
    outer = raised(RuntimeError("while loading"))
    outer.__context__ = raised(ValueError("cannot mmap an empty file"))
    assert "empty or damaged" in str(errors.explain(outer))
    outer.__suppress_context__ = True
    assert errors.explain(outer) is None


@pytest.mark.parametrize(
    ("body", "status", "output"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise UserError('file x is bad; replace it')", 1, "error: file x is bad; replace it\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        (
            "raise KeyError('_name')",
            1,
            "error: the checkpoint belongs to a plugin that is not loaded; give its --user-dir\n",
        ),
    ],
)
def test_main(capsys, body, status, output):
    scope: dict = {"UserError": UserError}
    exec(f"def function():\n    {body}", scope)
    with pytest.raises(SystemExit) as end:
        errors.main(scope["function"])
    assert (end.value.code, capsys.readouterr().err) == (status, output)


def test_main_leaves_unknown_errors_their_traceback():
    with pytest.raises(ZeroDivisionError):
        errors.main(lambda: 1 // 0)


PROGRAM = """
import sys
import fairseq_compat
from fairseq_compat import errors
from thoth_core.errors import UserError
sys.excepthook = lambda kind, error, trace: print("previous hook:", kind.__name__, file=sys.stderr)
fairseq_compat.install()
fairseq_compat.install()
{statement}
"""


@pytest.mark.parametrize(
    ("statement", "last"),
    [
        ("raise UserError('give --max-grid-cells a number')", "error: give --max-grid-cells a number"),
        ("open('/nope')", "previous hook: FileNotFoundError"),  # fairseq's errors and the user's own
        ("raise ValueError('cannot mmap an empty file')", "previous hook: ValueError"),
    ],
)
def test_the_hook_handles_our_errors_only(statement: str, last: str) -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM.format(statement=statement)], capture_output=True, text=True)
    assert (result.returncode, result.stderr.splitlines()[-1:]) == (1, [last])
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["generate", "interactive", "validate"])
def test_drop_ins_for_fairseq_s_other_commands(tmp_path: Path, tiny_corpus: Path, command: str) -> None:
    save = ["--save-dir", tmp_path, "--max-update", 1]
    assert run(tmp_path / "log", "fairseq_compat.train", tiny_corpus, *TINY, *save).status == 0
    program = f"fairseq_compat.{command}"
    own = ["--valid-subset", "valid", "--batch-size", 8] if command == "validate" else []
    common = [tiny_corpus, "--task", "translation", "--cpu", *own, "--path"]
    text = ["--input", tiny_corpus.parent / "tiny_text/test.de"] if command == "interactive" else []
    done = run(tmp_path / "log", program, *common, tmp_path / "checkpoint_last.pt", *text)
    assert done.status == 0, done.output
    assert "UserWarning" not in done.output
    missing = run(tmp_path / "log", program, *common, tmp_path / "no.pt")
    assert (missing.status, len(missing.errors)) == (1, 1), missing.output
    assert "no.pt does not exist" in missing.errors[0]
    assert "Traceback" not in missing.output
    wrong = run(tmp_path / "log", program, tiny_corpus, "--task", "translation", "--path", "x", "--quieter")
    assert wrong.status == 2
    assert wrong.output == f"error: unrecognized arguments: --quieter; see python -m {program} --help\n"
