"""A plugin registers its parts, also where its package was imported before."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # each test starts a Python that imports fairseq


@pytest.mark.parametrize("plugin", ["attn2d", "depth_adaptive", "memory_layers"])
def test_a_package_that_is_imported_already_registers(plugin: str) -> None:
    arch = {
        "attn2d": "pervasive",
        "depth_adaptive": "depth_adaptive_transformer",
        "memory_layers": "memory_transformer",
    }
    code = (
        f"import {plugin}\n"
        "from fairseq_compat import plugins\n"
        f"plugins.load({str(ROOT / plugin)!r}); plugins.load({str(ROOT / plugin)!r})\n"
        f"from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY\n"
        f"assert {arch[plugin]!r} in MODEL_REGISTRY or {arch[plugin]!r} in ARCH_MODEL_REGISTRY"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
