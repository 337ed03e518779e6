"""What a training is asked to do: the layers of its options."""

from types import SimpleNamespace
from typing import Any

import pytest

from recipes import declarative, plan


@pytest.mark.parametrize(
    ("device", "computes", "after", "expected"),
    [
        ("cpu", True, [], True),
        ("cpu", False, [], False),
        ("cpu", False, ["--bf16"], True),  # the user insists
        ("gpu", False, [], True),
    ],
)
def test_bf16_of_a_model_file_is_for_cpus_that_compute_it(
    device: str, computes: bool, after: list[str], expected: bool, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(plan, "cpu_computes_bf16", lambda: computes)
    model = declarative.load_model("pervasive_small")
    corpus: Any = SimpleNamespace(name="toy")
    merged = plan.merged_options(model, corpus, after, device=device)
    assert merged.get("bf16", False) is expected
    assert ("training in float32" in capsys.readouterr().out) is not expected
