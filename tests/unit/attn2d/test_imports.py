"""The plain modules load no fairseq, and the package registers with fairseq where that is loaded."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each test starts a Python that imports fairseq

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


def test_plain_modules_load_no_fairseq() -> None:
    loaded = run(f"import sys, {', '.join(PLAIN)}; print([name for name in sys.modules if name.startswith('fairseq')])")
    assert loaded == "[]"


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
