"""The examples of docs/attn2d.md that need no trained model."""

import re

import torch

from tests.support.paths import ROOT


def test_the_networks_alone() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "attn2d.md").read_text(encoding="utf-8"), flags=re.S)
    (example,) = [code for code in examples if "attn2d.convnet" in code]
    names: dict[str, torch.Tensor] = {}
    exec(example, names)
    assert names["states"].shape == (2, 7, 64)
    assert names["alignments"].shape == (2, 7, 9)
