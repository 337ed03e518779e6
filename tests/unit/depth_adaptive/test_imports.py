"""Importing the package defines things: fairseq is loaded and changed by nothing but a use of the model."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # each test starts a Python that imports fairseq

PLAIN = [
    "depth_adaptive",
    *(f"depth_adaptive.{name}" for name in ("halting", "oracles", "losses", "flops", "calibration", "ops")),
]

PATCHED = """
import sys
import fairseq.trainer, fairseq.data, fairseq.checkpoint_utils, numpy

def names():
    found = [sys.excepthook]
    for owner in (fairseq.trainer.Trainer, fairseq.data, fairseq.checkpoint_utils, numpy):
        found.append(dict(vars(owner)))
    return found

before = names()
import depth_adaptive, depth_adaptive.model, depth_adaptive.criterion
after = names()
assert all(one is other if callable(one) else one == other for one, other in zip(before, after, strict=True))
"""

REGISTERED = """
import depth_adaptive.halting
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
assert "depth_adaptive_transformer" not in ARCH_MODEL_REGISTRY
depth_adaptive.register()
assert "depth_adaptive_cross_entropy" in CRITERION_REGISTRY
assert ARCH_MODEL_REGISTRY["depth_adaptive_transformer_small"] is depth_adaptive.DepthAdaptiveTransformerModel
depth_adaptive.register()
try:
    depth_adaptive.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""

BY_FAIRSEQ = """
import fairseq.models
import depth_adaptive
assert "depth_adaptive_transformer" in fairseq.models.ARCH_MODEL_REGISTRY
from fairseq.criterions import CRITERION_REGISTRY
assert "depth_adaptive_cross_entropy" in CRITERION_REGISTRY
"""


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plain_modules_load_no_fairseq() -> None:
    names = ", ".join(PLAIN)
    run_python(f"import sys, {names}\nassert not any(name.split('.')[0] == 'fairseq' for name in sys.modules)")


@pytest.mark.parametrize("code", [PATCHED, REGISTERED, BY_FAIRSEQ], ids=["patched", "registered", "by fairseq"])
def test_importing_defines_and_registers_alone(code: str) -> None:
    run_python(code)
