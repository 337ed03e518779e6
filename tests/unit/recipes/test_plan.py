"""What a training is asked to do: the layers of its options."""

from types import SimpleNamespace
from typing import Any

import pytest

from recipes.config import schema
from recipes.training import plan
from thoth_core.errors import UserError


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
    model = schema.load_model("pervasive_small")
    corpus: Any = SimpleNamespace(name="toy")
    merged = plan.merged_options(model, corpus, after, device=device)
    assert merged.get("bf16", False) is expected
    assert ("training in float32" in capsys.readouterr().out) is not expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (["--fp16"], {"fp16": True}),
        (["--amp"], {"amp": True}),
        (["--bf16"], {"bf16": True}),
        (["--bf16", "False"], {}),
        (["--bf16=false"], {}),
        ([], {"bf16": True}),
    ],
)
def test_the_command_line_has_the_last_word_about_precision(
    after: list[str], expected: dict[str, bool], monkeypatch: Any
) -> None:
    monkeypatch.setattr(plan, "cpu_computes_bf16", lambda: True)
    corpus: Any = SimpleNamespace(name="toy")
    merged = plan.merged_options(schema.load_model("pervasive_small"), corpus, after, device="cpu")
    assert {name: merged[name] for name in plan.PRECISIONS if name in merged} == expected


@pytest.mark.parametrize("limits", [{"minutes": 0}, {"minutes": "x"}, {"minutes": True}, {"max-epoch": -1},
                                    {"max-update": "0"}, {"patience": 1.5}, {"max-epoch": float("inf")}])  # fmt: skip
def test_a_limit_must_be_one(limits: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(limits))} must be a .*number"):
        plan.check_limits(limits)
    plan.check_limits({"minutes": 0.5, "max-epoch": "3", "max-update": 7, "patience": 1})
