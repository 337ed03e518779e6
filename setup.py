"""What pyproject.toml cannot say: the installed packages, and attn2d's native operators.

The operators are compiled where a C++ compiler and PyTorch are found, PyTorch in the environment that is installed
into (also under pip's build isolation). Without them attn2d computes with PyTorch's own operators, more slowly:
install PyTorch first, then this package. `make` does.
"""

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

PACKAGES = ["fairseq_host", "attn2d", "depth_adaptive", "memory_layers"]


def torch_folder() -> Path | None:
    """The installed PyTorch; its headers and libraries are used, it is not imported."""
    found = importlib.util.find_spec("torch")
    folder = Path(found.origin).parent if found and found.origin else Path(sysconfig.get_path("platlib"), "torch")
    return folder if (folder / "include").is_dir() else None


def extensions() -> list[Extension]:
    torch = torch_folder()
    if torch is None:
        print("PyTorch is not installed: attn2d's native operators are left out", file=sys.stderr)
        return []
    flags = ["-O3", "-std=c++20", "-DNDEBUG", "-g0"]
    for folder in ("include", "include/torch/csrc/api/include"):
        flags += ["-isystem", str(torch / folder)]
    # On macOS, the compiler has no OpenMP: the operators then run in one thread.
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    sources = sorted(str(path) for path in Path("attn2d", "csrc").glob("*.cpp"))
    headers = sorted(str(path) for path in Path("attn2d", "csrc").glob("*.h"))
    return [
        Extension(
            "attn2d._C",
            sources,
            depends=headers,
            language="c++",
            extra_compile_args=[*flags, *openmp],
            extra_link_args=openmp,
            library_dirs=[str(torch / "lib")],
            libraries=["torch_cpu", "torch", "c10"],
            optional=True,  # without a compiler the package installs nevertheless
        )
    ]


os.chdir(Path(__file__).resolve().parent)
setup(packages=PACKAGES, package_data={"attn2d": ["csrc/*"]}, ext_modules=extensions())
