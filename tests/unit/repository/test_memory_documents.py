"""docs/memory_layers.md says what the code does: options, defaults, ranges, architectures, sizes, Hydra's names."""

import argparse
import dataclasses
import re
import shlex

import pytest
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerModel

from memory_layers import ops
from memory_layers.config import EncoderMemoryOptions, MemoryTransformerLMConfig, check
from memory_layers.model import MemoryTransformerModel
from memory_layers.optim import NAME, ProductKeyAdamConfig
from tests.support.paths import ROOT
from thoth_core.errors import UserError

PAGE = (ROOT / "docs" / "memory_layers.md").read_text(encoding="utf-8")


def tables() -> list[list[list[str]]]:
    """The cells of every row of every table, the heading first."""
    blocks = re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.M)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()] for table in blocks]


def documented() -> dict[str, list[str]]:
    """Flag → default, valid values, meaning."""
    rows = [row for table in tables() if table[0][0] == "flag" for row in table[2:]]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): row[1:] for row in rows}


def flags(options: type) -> dict[str, dataclasses.Field]:
    fields = [field for field in dataclasses.fields(options) if field.name.startswith("memory_")]
    return {f"--{field.name.replace('_', '-')}": field for field in fields}


def test_options_and_defaults() -> None:
    fields = flags(EncoderMemoryOptions) | flags(ProductKeyAdamConfig)
    for precision in ("fp16", "bf16"):
        del fields[f"--memory-efficient-{precision}"]  # fairseq's own, handed through
    in_page = documented()
    assert set(in_page) == set(fields)
    for flag, field in fields.items():
        default = field.default
        expected = "off" if default is False else "none" if default is None else f"`{default}`"
        assert in_page[flag][0] == expected, flag
        if choices := getattr(field.type, "__members__", None):
            assert re.findall(r"`([^`]+)`", in_page[flag][1]) == [choice.value for choice in choices.values()], flag
    assert set(flags(MemoryTransformerLMConfig)) == set(flags(EncoderMemoryOptions)) - {"--memory-encoder-layers"}


def test_ranges() -> None:
    """The lowest documented value passes, one below is refused by name."""
    tested = set()
    for flag, field in flags(EncoderMemoryOptions).items():
        valid = documented()[flag][1]
        if lowest := re.match(r"at least (\d+)", valid):
            low, wrong = int(lowest[1]), int(lowest[1]) - 1
        elif valid == "0 to below 1":
            low, wrong = 0.0, 1.0
        else:
            continue
        others = {"memory_flat": True, "memory_topk": 1, "memory_keys": 4}
        check(EncoderMemoryOptions(**others | {field.name: low}), dims=[8])
        with pytest.raises(UserError, match=f"^{flag} must be"):
            check(EncoderMemoryOptions(**others | {field.name: wrong}), dims=[8])
        tested.add(flag)
    assert len(tested) == 8


def test_architectures() -> None:
    (table,) = (table for table in tables() if table[0][0] == "option")
    names = [name.strip("`") for name in table[0][1:]]
    assert set(names) == {name for name in ARCH_MODEL_REGISTRY if name.startswith("memory_transformer")}
    for column, name in enumerate(names, 1):
        args = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](args)
        language_model = not issubclass(ARCH_MODEL_REGISTRY[name], TransformerModel)
        if language_model:
            defaults = vars(MemoryTransformerLMConfig())
            args = argparse.Namespace(**defaults | vars(args))
        for row in table[2:]:
            for flag in re.findall(r"`--([a-z-]+)`", row[0]):
                if language_model and flag.startswith("encoder"):
                    continue
                value = re.search(r"`(.+?)`", row[column])
                assert value is not None
                assert str(getattr(args, flag.replace("-", "_"))) == value[1], (name, flag)


def test_memory_needed() -> None:
    (table,) = (table for table in tables() if table[0][0] == "N")
    units = {"MB": 1e6, "GB": 1e9}
    for n, slots, values, *sizes in table[2:]:
        keys = int(n.replace(",", ""))
        assert int(slots.replace(",", "")) == keys**2
        number, scale = values.split()
        assert float(number) * {"million": 1e6, "billion": 1e9}[scale] == pytest.approx(keys**2 * 512, rel=0.03)
        for size, each in zip(sizes, (4, 12, 14), strict=True):
            figure, unit = size.split()
            assert float(figure) * units[unit] == pytest.approx(keys**2 * 512 * each, rel=0.03)


def test_bytes_exchanged() -> None:
    """The example of the page: T = 1,024, V = 512, H·K = 128."""
    (table,) = (table for table in tables() if table[0][0] == "what is exchanged")
    tokens, dim, bag = 1024, 512, 128
    sizes = [tokens * (4 * dim + 8 * bag), 4 * dim * tokens * bag, 4 * dim * 512**2]
    for row, size in zip(table[2:], sizes, strict=True):
        assert float(row[2].removeprefix("up to ").removesuffix(" MB")) == pytest.approx(size / 1e6, rel=0.02)
    assert f"{tokens * bag:,} rows" in PAGE
    kept = re.search(r"H·K = 128 that is ([\d.]+) MB", PAGE)
    assert kept is not None
    assert float(kept[1]) == pytest.approx(tokens * (4 * dim + 12 * bag) / 1e6, rel=0.02)


def test_the_check_of_a_build_fails_where_a_kernel_is_missing() -> None:
    check_of_build = re.search(r"bin/python -c '\n(import torch.+?)'\n```", PAGE, flags=re.S)
    assert check_of_build is not None
    with pytest.raises(SystemExit) as end:
        exec(compile(check_of_build[1], "docs/memory_layers.md", "exec"), {})
    if ops.backends()["cuda"]:
        assert end.value.code == 0
    else:
        assert "memory_layers::rows_adam_" in str(end.value.code)


def test_hydra_names() -> None:
    block = PAGE[PAGE.index("    fairseq-hydra-train") :].split("\n\n")[0]
    words = shlex.split(block.replace("\\\n", " "))[1:]
    settings = dict(word.lstrip("+").split("=", 1) for word in words)
    assert issubclass(ARCH_MODEL_REGISTRY[settings["model._name"]], MemoryTransformerModel)
    assert settings["optimizer._name"] == NAME
    for prefix, options in (("model.", EncoderMemoryOptions), ("optimizer.", ProductKeyAdamConfig)):
        names = {field.name for field in dataclasses.fields(options)} | {"_name"}
        assert {name.removeprefix(prefix) for name in settings if name.startswith(prefix)} <= names


def test_the_python_example_runs() -> None:
    example = PAGE[PAGE.index("```python") :].split("```")[1].removeprefix("python\n")
    small = example.replace("512", "16").replace("256", "8").replace("k=32", "k=4")
    exec(compile(small, "docs/memory_layers.md", "exec"), {})
