"""What is installed, and that constraints.txt pins it; see setup.py, pyproject.toml and the Makefile."""

import os
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
]


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_each_requirement_is_pinned_to_a_version_that_it_allows(requirement):
    wanted = Requirement(requirement)
    assert pins()[canonicalize_name(wanted.name)] in wanted.specifier


def test_tests_run_with_the_pinned_versions():
    """Of everything that the package needs, what it needs in turn included."""
    queue = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["recipes"]]
    seen: set[str] = set()
    while queue:
        name = canonicalize_name(queue.pop().name)
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        if not name.startswith(("nvidia-", "cuda-", "triton")):  # of PyTorch's CUDA build, which pins them itself
            assert Version(distribution.version).public == pins()[name].public, name
        requirements = map(Requirement, distribution.requires or [])
        queue += [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert {"torch", "ve-fairseq", "sentencepiece"} <= seen


def test_what_setup_installs():
    """The packages and native operators that setup.py names, without building them."""
    code = (
        "import runpy, setuptools; given = {}; setuptools.setup = lambda **options: given.update(options)\n"
        "runpy.run_path('setup.py'); print(*sorted(given['packages']))\n"
        "for extension in given['ext_modules']: print(extension.name, *extension.sources)\n"
    )
    environment = {**os.environ, "MEMORY_LAYERS_BUILD": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=environment
    )
    assert result.stdout.splitlines() == [
        "attn2d depth_adaptive fairseq_compat memory_layers",
        "attn2d._C attn2d/csrc/kernels.cpp attn2d/csrc/ops.cpp",
        "depth_adaptive._C depth_adaptive/csrc/kernels.cpp depth_adaptive/csrc/ops.cpp",
        "memory_layers._C memory_layers/csrc/kernels.cpp memory_layers/csrc/ops.cpp",
    ]
    assert metadata.metadata("thoth-seq2seq")["Requires-Python"] == "<3.13,>=3.11"


def test_plugins_and_recipes_import_one_way():
    """torch, fairseq ← fairseq_compat ← plugins ← recipes: checked in the sources."""
    plugins = {"attn2d", "depth_adaptive", "memory_layers"}
    outside = {"recipes", "tests", "benchmarks"}
    allowed = {"fairseq_compat": set(), "recipes": {"fairseq_compat", "recipes", *plugins}}
    for package in ("fairseq_compat", *sorted(plugins), "recipes"):
        forbidden = (plugins | outside | {"fairseq_compat"}) - allowed.get(package, {"fairseq_compat"}) - {package}
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                words = line.split()
                if words[:1] in (["import"], ["from"]):
                    assert words[1].split(".")[0] not in forbidden, f"{path}: {line}"
