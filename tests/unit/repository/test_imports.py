"""Importing a module defines things and changes nothing else."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # each test starts a Python that imports fairseq

PACKAGES = ("thoth_core", "fairseq_compat", "attn2d", "depth_adaptive", "memory_layers", "recipes")

# Plain PyTorch and shared code: usable without fairseq.
WITHOUT_FAIRSEQ = (
    *("attn2d", "attn2d.convnet", "attn2d.aggregators", "attn2d.masked_conv", "attn2d.ops"),
    *("depth_adaptive", "depth_adaptive.halting", "depth_adaptive.losses", "depth_adaptive.oracles"),
    *("memory_layers", "memory_layers.product_key", "memory_layers.ops", "memory_layers.row_adam"),
    *("fairseq_compat", "fairseq_compat.errors", "fairseq_compat.events", "fairseq_compat.checkpoints"),
)


def public_modules() -> list[str]:
    """Every module of our packages but `__main__`, and those whose name or folder begins with an underscore."""
    names = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if not any(part.startswith("_") or part == "csrc" for part in parts):
                names.append(".".join(parts))
    return names


CHANGES = """
import importlib, logging, signal, sys, warnings
import fairseq.data, fairseq.trainer, fairseq.distributed.utils, fairseq.checkpoint_utils, fairseq.file_io
import numpy, torch
import fairseq.optim.fp16_optimizer, fairseq.optim.lr_scheduler.reduce_lr_on_plateau
import fairseq_cli.train, fairseq_cli.generate, fairseq_cli.interactive, fairseq_cli.validate, fairseq_cli.hydra_train

def functions(module):  # importing may add submodules as attributes
    return {n: v for n, v in vars(module).items() if type(v) is not type(sys) and n != "__warningregistry__"}

def state():
    return {
        "excepthook": sys.excepthook,
        "Trainer": dict(vars(fairseq.trainer.Trainer)),
        "fairseq.data": functions(fairseq.data),
        "data_utils": functions(fairseq.data.data_utils),
        "distributed": functions(fairseq.distributed.utils),
        "checkpoint_utils": functions(fairseq.checkpoint_utils),
        "PathManager": dict(vars(fairseq.file_io.PathManager)),
        "fp16": dict(vars(fairseq.optim.fp16_optimizer.FP16Optimizer)),
        "numpy": functions(numpy),
        "safe globals": list(torch.serialization.get_safe_globals()),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "threads": torch.get_num_threads(),
    }

for name in sys.argv[1:]:
    before = state()
    importlib.import_module(name)
    after = state()
    for key in before:
        if before[key] != after[key]:
            print(name, "changes", key)
"""


def test_importing_changes_nothing() -> None:
    command = [sys.executable, "-c", CHANGES, *public_modules()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_plain_modules_load_no_fairseq() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'fairseq' not in sys.modules, f'{name} loads fairseq'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *WITHOUT_FAIRSEQ], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_program_that_imports_the_plugins_keeps_its_traceback() -> None:
    code = "import attn2d, depth_adaptive, memory_layers\nopen('/nope')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" in done.stderr
    assert "FileNotFoundError" in done.stderr
