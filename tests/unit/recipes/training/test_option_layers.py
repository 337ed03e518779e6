"""The four layers of fairseq-train's options, and what may be given in each."""

from typing import Any

import pytest

from recipes.config.models import load_model
from recipes.training import devices, fairseq_options, option_layers
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
    monkeypatch.setattr(devices, "cpu_computes_bf16", lambda: computes)
    model = load_model("pervasive_small")
    merged = option_layers.merged_options(model, "toy", after, device=device)
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
    monkeypatch.setattr(devices, "cpu_computes_bf16", lambda: True)
    merged = option_layers.merged_options(load_model("pervasive_small"), "toy", after, device="cpu")
    assert {name: merged[name] for name in option_layers.PRECISIONS if name in merged} == expected


@pytest.mark.parametrize("limits", [{"minutes": 0}, {"minutes": "x"}, {"minutes": True}, {"max-epoch": -1},
                                    {"max-update": "0"}, {"patience": 1.5}, {"max-epoch": float("inf")}])  # fmt: skip
def test_a_limit_must_be_one(limits: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(limits))} must be a .*number"):
        fairseq_options.check_limits(limits)
    fairseq_options.check_limits({"minutes": 0.5, "max-epoch": "3", "max-update": 7, "patience": 1})


def test_options_from_the_command_line() -> None:
    assert fairseq_options.from_command_line(
        ["--lr", "1", "--bf16", "--clip_norm=-1", "--adam-betas", "(0.9, 0.98)"]
    ) == {
        "lr": "1",
        "bf16": True,
        "clip-norm": "-1",
        "adam-betas": "(0.9, 0.98)",
    }
    for wrong in (["-s", "de"], ["value"], ["--lr", "1", "2"]):
        with pytest.raises(UserError, match="long form"):
            fairseq_options.from_command_line(wrong)


def test_options_to_arguments() -> None:
    options = {"lr": 0.1, "bf16": True, "fp16": False, "amp": None, "clip-norm": -1, "betas": "(0.9, 1)"}
    assert fairseq_options.to_arguments(options) == ["--lr", "0.1", "--bf16", "--clip-norm=-1", "--betas", "(0.9, 1)"]
