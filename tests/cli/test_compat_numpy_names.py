"""What fairseq takes from NumPy is there, whatever NumPy's version."""

import subprocess
import sys

SENTENCES = """
import numpy as np, torch
from fairseq.data import TokenBlockDataset
if {fixed}:
    import fairseq_compat
    fairseq_compat.install()
lines = [torch.tensor([4, 5, 2]), torch.tensor([6, 2])]
data = TokenBlockDataset(lines, [3, 2], 8, pad=1, eos=2, break_mode="eos")
assert [data[i].tolist() for i in range(len(data))] == [[4, 5, 2], [6, 2]]
"""


def sentences(fixed: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SENTENCES.format(fixed=fixed)]
    return subprocess.run(command, capture_output=True, text=True)


def test_sentences_are_read_one_by_one() -> None:
    assert "no attribute 'compat'" in sentences(fixed=False).stderr, "fairseq or NumPy has fixed it: delete ours"
    assert sentences(fixed=True).returncode == 0
