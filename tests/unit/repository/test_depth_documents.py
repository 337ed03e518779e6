"""docs/depth_adaptive.md says what the code does: options, defaults, valid values, architectures."""

import argparse
import dataclasses
import re

from fairseq.models import ARCH_CONFIG_REGISTRY

from depth_adaptive.config import ARCHITECTURES, DepthOptions
from depth_adaptive.criterion import DepthAdaptiveCriterionConfig
from depth_adaptive.halting import HALTINGS, POLICIES
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "depth_adaptive.md").read_text(encoding="utf-8")


def tables(heading: str) -> list[list[list[str]]]:
    """The rows of the tables with that first heading, their own heading first."""
    blocks = re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.M)
    cells = [[[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()] for table in blocks]
    return [table for table in cells if table[0][0] == heading]


def test_options_and_defaults() -> None:
    fields = {
        f"--{field.name.replace('_', '-')}": field
        for options in (DepthOptions, DepthAdaptiveCriterionConfig)
        for field in dataclasses.fields(options)
        if field.name not in ("_name", "sentence_avg")  # which is fairseq's
    }
    documented = {row[0].strip("`"): row[1:] for table in tables("flag") for row in table[2:]}
    assert set(documented) == set(fields)
    for flag, field in fields.items():
        default = field.default
        expected = "off" if default is False else "none" if default is None else f"`{default}`"
        assert documented[flag][0] == expected, flag
        if choices := getattr(field.type, "__members__", None):
            assert re.findall(r"`([^`]+)`", documented[flag][1]) == [c.value for c in choices.values()], flag


def test_policies_and_haltings() -> None:
    for heading, names in (("`exit_policy`", POLICIES), ("`--halting`", HALTINGS[1:])):
        (table,) = tables(heading)
        assert [re.findall(r"`(\w+)`", row[0])[0] for row in table[2:]] == list(names)


def test_architectures() -> None:
    (table,) = tables("option")
    names = [name.strip("`") for name in table[0][1:]]
    assert set(names) == {"depth_adaptive_transformer", *ARCHITECTURES}
    for column, name in enumerate(names, 1):
        args = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](args)
        for row in table[2:]:
            for flag in re.findall(r"`--([a-z-]+)`", row[0]):
                assert str(getattr(args, flag.replace("-", "_"))) == row[column].strip("`"), (name, flag)
