"""What is installed, and that constraints.txt pins it: setup.py, pyproject.toml and the Makefile."""

import os
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import check_dist
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
    """The pins cover every package that is needed, also indirectly."""
    queue = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["recipes"]]
    seen: set[str] = set()
    while queue:
        name = canonicalize_name(queue.pop().name)
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        if not name.startswith(("nvidia-", "cuda-", "triton")):  # PyTorch's CUDA build pins these itself
            assert Version(distribution.version).public == pins()[name].public, name
        requirements = map(Requirement, distribution.requires or [])
        queue += [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert {"torch", "ve-fairseq", "sentencepiece"} <= seen


def test_what_setup_installs():
    """The packages and native operators that setup.py names, without building them."""
    code = (
        "import runpy, setuptools; given = {}; setuptools.setup = lambda **options: given.update(options)\n"
        "runpy.run_path('setup.py'); print(*sorted({name.partition('.')[0] for name in given['packages']}))\n"
        "for extension in given['ext_modules']: print(extension.name, *extension.sources)\n"
    )
    environment = {**os.environ, "MEMORY_LAYERS_BUILD": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=environment
    )
    assert result.stdout.splitlines() == [
        "attn2d depth_adaptive fairseq_compat memory_layers thoth_core",
        "attn2d._C "
        + " ".join(
            f"attn2d/csrc/{name}.cpp"
            for name in ("convolution", "decoding", "dropout", "kernels", "layer_norm", "pooling")
        ),
        "depth_adaptive._C depth_adaptive/csrc/kernels.cpp depth_adaptive/csrc/ops.cpp",
        "memory_layers._C memory_layers/csrc/kernels.cpp memory_layers/csrc/ops.cpp",
    ]
    assert metadata.metadata("thoth-seq2seq")["Requires-Python"] == "<3.13,>=3.11"


def test_an_installation_is_complete(tmp_path):
    """Every module, header, native source and py.typed of the packages is installed, sub-packages included."""
    command = ["setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path / "lib"), "egg_info", "--egg-base"]
    subprocess.run([sys.executable, *command, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    installed = {str(path.relative_to(tmp_path / "lib")) for path in (tmp_path / "lib").rglob("*") if path.is_file()}
    assert check_dist.missing_from_wheel(installed) == set()
    assert {f"{package}/py.typed" for package in check_dist.PACKAGES} <= installed


def test_what_is_missing_from_a_distribution_is_noticed():
    everything = check_dist.package_files()
    assert check_dist.missing_from_wheel(everything - {"attn2d/py.typed"}) == {"attn2d/py.typed"}
    assert "native/vectors.h" in check_dist.missing_from_sdist(everything)
