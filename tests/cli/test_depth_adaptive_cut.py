"""``python -m depth_adaptive.cut`` on trained checkpoints, whose results fairseq decodes without the plugin."""

from pathlib import Path

import pytest

from tests.support.command_lines import TINY, run
from tests.support.depth_commands import generate, train, translations


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("cut") / "run"
    options = ["--exit-projections", "separate", "--decoder-normalize-before", "--halting", "geometric"]
    command = train(folder, tiny_corpus, *options, "--max-update", 26)
    assert command.status == 0, command.output
    return folder / "checkpoint_last.pt"


@pytest.mark.parametrize("n", [1, 2])
def test_translations_need_no_plugin(n: int, trained: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    output = tmp_path / "cut.pt"
    command = run(tmp_path / "cut.log", "depth_adaptive.cut", trained, n, output)
    assert command.status == 0, command.output
    # fairseq leaves out the last batch where its size is no multiple of 8.
    whole = ["--required-batch-size-multiple", 1]
    options = ["--path", output, "--cpu", "--beam", 3, "--max-len-b", 12, "--num-workers", 0, *whole]
    decoded = translations(run(tmp_path / "plain.log", "fairseq-generate", tiny_corpus, *options))
    fixed = {"exit_policy": "fixed", "exit_layer": n}
    assert decoded == translations(generate(tmp_path / "fixed.log", tiny_corpus, trained, fixed))
    assert len(decoded) == 20


def test_wrong_inputs_end_in_one_line(trained: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    plain = tmp_path / "plain"
    arguments = [tiny_corpus, *TINY, "--save-dir", plain, "--max-update", 1]
    assert run(tmp_path / "train.log", "fairseq-train", *arguments).status == 0
    (tmp_path / "taken.pt").write_bytes(b"kept")
    for checkpoint, n, output, message in (
        (trained, 0, "cut.pt", "N must be from 1 to 3, the decoder's blocks, given 0"),
        (trained, 4, "cut.pt", "N must be from 1 to 3, the decoder's blocks, given 4"),
        (tmp_path / "none.pt", 1, "cut.pt", "does not exist"),
        (plain / "checkpoint_last.pt", 1, "cut.pt", "must contain a depth_adaptive_transformer, given transformer"),
        (trained, 1, "taken.pt", "exists: give another name, or --force to replace it"),
        (trained, 1, "none/cut.pt", "none does not exist: make it, or give another OUTPUT"),
    ):
        command = run(tmp_path / "cut.log", "depth_adaptive.cut", checkpoint, n, tmp_path / output)
        assert command.status == 1, command.output
        assert len(command.errors) == 1, command.output
        assert message in command.errors[0]
        assert "Traceback" not in command.output
    assert not (tmp_path / "cut.pt").exists()
    assert (tmp_path / "taken.pt").read_bytes() == b"kept"
    forced = run(tmp_path / "cut.log", "depth_adaptive.cut", trained, 1, tmp_path / "taken.pt", "--force")
    assert forced.status == 0, forced.output
