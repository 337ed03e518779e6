"""Quiet logs: the named noise is gone, progress and other warnings stay; see fairseq_compat/logs.py."""

import logging

import pytest

from fairseq_compat import logs
from tests.support.command_lines import TINY, run


def record(name: str, message: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, None, None)


@pytest.mark.parametrize(("name", "start"), logs.MESSAGES)
def test_each_named_message_is_noise_as_information_only(name, start):
    assert logs.is_noise(record(name, start + " and so on"))
    assert not logs.is_noise(record(name, start, logging.WARNING))
    assert not logs.is_noise(record("another.logger", start))


def test_progress_is_no_noise():
    assert not logs.is_noise(record("train", "epoch 001 | loss 5.688"))
    assert not logs.is_noise(record("fairseq_cli.train", "num. shared model params: 6,208 (num. trained: 6,208)"))


def test_a_training(tmp_path, tiny_corpus):
    arguments = [tiny_corpus, *TINY, "--max-update", 2, "--save-dir"]
    noisy = run(tmp_path / "noisy.log", "fairseq-train", *arguments, tmp_path / "a")
    quiet = run(tmp_path / "quiet.log", "fairseq_compat.train", *arguments, tmp_path / "b")
    assert (noisy.status, quiet.status) == (0, 0)
    for message in ("UserWarning", "'common': {'_name': None", "Preparing to save checkpoint"):
        assert message in noisy.output
        assert message not in quiet.output
    for line in quiet.output.splitlines():  # only log lines, and the model's description
        assert " | INFO | " in line or line.startswith((" ", ")")), line
    for message in ("num. shared model params", "num_updates=2", "valid on 'valid' subset", "Saved checkpoint"):
        assert message in quiet.output
