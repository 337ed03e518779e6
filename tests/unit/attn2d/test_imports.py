"""Importing the package defines things and does nothing else; fairseq is loaded where it is needed alone."""

import subprocess
import sys

import pytest

PLAIN = (
    "attn2d",
    "attn2d.aggregators",
    "attn2d.backend",
    "attn2d.convnet",
    "attn2d.grid",
    "attn2d.linear",
    "attn2d.masked_conv",
    "attn2d.ops",
    "attn2d.reference",
)


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("module", PLAIN)
def test_plain_modules_load_no_fairseq(module: str) -> None:
    assert run(f"import sys, {module}; print([name for name in sys.modules if name.startswith('fairseq')])") == "[]"


STATE = """
import sys, numpy
import fairseq.trainer, fairseq.data, fairseq.checkpoint_utils, fairseq_cli.train

def state():
    fairseq_packages = ('fairseq', 'fairseq_cli')
    modules = [module for name, module in sorted(sys.modules.items()) if name.split('.')[0] in fairseq_packages]
    values = {(module.__name__, name): id(value) for module in modules for name, value in vars(module).items()}
    values |= {("Trainer", name): id(value) for name, value in vars(fairseq.trainer.Trainer).items()}
    values |= {("numpy", name): id(value) for name, value in vars(numpy).items()}
    return values | {("sys", "excepthook"): id(sys.excepthook)}

before = state()
"""


@pytest.mark.parametrize("module", (*PLAIN, "attn2d.config", "attn2d.model", "attn2d.task"))
def test_importing_changes_neither_python_nor_fairseq(module: str) -> None:
    # What fairseq itself loads later adds names to its packages; none of the names that were there may change.
    check = "after = state(); print([name for name, value in before.items() if after.get(name) != value])"
    assert run(f"{STATE}\nimport {module}\n{check}") == "[]"


def test_where_fairseq_is_loaded_the_package_registers() -> None:
    code = "import fairseq.models, fairseq.tasks, attn2d; print('pervasive' in fairseq.models.MODEL_REGISTRY, "
    code += "'pervasive_translation' in fairseq.tasks.TASK_REGISTRY)"
    assert run(code) == "True True"


def test_the_model_and_the_task_are_attributes_of_the_package() -> None:
    """Also where fairseq comes later; taking one of them registers both."""
    code = "from attn2d import PervasiveModel; from fairseq.tasks import TASK_REGISTRY; import attn2d, attn2d.task; "
    code += (
        "print(PervasiveModel.__module__, TASK_REGISTRY['pervasive_translation'] is attn2d.PervasiveTranslationTask)"
    )
    assert run(code) == "attn2d.model True"
    assert run("import attn2d\ntry: attn2d.nothing\nexcept AttributeError as error: print(error)").endswith("'nothing'")
