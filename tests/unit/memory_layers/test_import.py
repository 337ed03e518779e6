"""What importing memory_layers does, each in a process of its own: it defines names, and nothing else."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # each test starts a Python that imports fairseq

PLAIN = ("memory_layers", "ops", "reference", "product_key", "row_adam", "table", "usage", "exchange", "capacity")


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plain_modules_load_no_fairseq() -> None:
    imports = "\n".join("import memory_layers" + ("" if name == "memory_layers" else f".{name}") for name in PLAIN)
    run(f"""
{imports}
import sys
for name in ("ProductKeyMemory", "FlatKeyMemory", "RowAdam", "ValueTable"):
    getattr(memory_layers, name)
loaded = [name for name in sys.modules if name.partition(".")[0] in ("fairseq", "fairseq_compat")]
assert not loaded, loaded
assert "torch._dynamo" not in sys.modules, "the compiler takes seconds to import"
""")


def test_fairseqs_import_registers() -> None:
    """fairseq imports the package for --user-dir, and in processes that it starts."""
    run("""
import fairseq.models
import memory_layers
from fairseq.models import MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
assert {"memory_transformer", "memory_transformer_lm"} <= set(MODEL_REGISTRY)
assert "product_key_adam" in OPTIMIZER_REGISTRY
""")


@pytest.mark.parametrize("how", ("memory_layers.register()", "memory_layers.MemoryTransformerModel"))
def test_registration_after_the_import(how: str) -> None:
    run(f"""
import memory_layers
{how}
{how}
from fairseq.models import MODEL_REGISTRY
assert MODEL_REGISTRY["memory_transformer"] is memory_layers.MemoryTransformerModel
assert MODEL_REGISTRY["memory_transformer_lm"] is memory_layers.MemoryTransformerLanguageModel
try:
    memory_layers.nothing
except AttributeError as error:
    assert "'nothing'" in str(error)
else:
    raise AssertionError
""")


def test_importing_changes_nothing() -> None:
    run("""
import sys
import fairseq.trainer, fairseq.data, fairseq.checkpoint_utils, numpy
from fairseq.distributed import utils as distributed

def state():
    modules = fairseq.trainer, fairseq.data, fairseq.data.data_utils, fairseq.checkpoint_utils, distributed, numpy
    return sys.excepthook, dict(vars(fairseq.trainer.Trainer)), [dict(vars(module)) for module in modules]

before = state()
import memory_layers, memory_layers.model, memory_layers.optim
assert state() == before
""")


def test_the_trainer_is_patched_once() -> None:
    run("""
from fairseq.trainer import Trainer
from memory_layers import trainer_patches
trainer_patches.install()
once = dict(vars(Trainer))
trainer_patches.install()
assert dict(vars(Trainer)) == once
""")
