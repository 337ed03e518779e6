"""The installed packages and the native operators of the plugins: what pyproject.toml cannot declare.

The operators are compiled if there is a C++ compiler, against the PyTorch of the environment that this package is
installed into (also under pip's build isolation). Without them the plugins use PyTorch's own operators, which are
slower. Install PyTorch first, then this package; `make install` does.

Environment:
    MEMORY_LAYERS_BUILD: which kernels of memory_layers are built. `auto` (default): those for the CPU, and those for
        CUDA if PyTorch is a CUDA build and there is nvcc; what cannot be built is left out. `cpu`, or `cuda` for both:
        an error if they cannot be built. `none`: no kernels.
    TORCH_CUDA_ARCH_LIST: the CUDA architectures, such as "8.0 9.0+PTX"; default "8.0 9.0 10.0+PTX".
    CUDA_HOME: the folder of CUDA, which contains bin/nvcc; default: the folder of the nvcc on PATH.
    NATIVE_FLAGS: flags added for the C++ compiler and the linker of the extensions; `make sanitize` uses it.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

INSTALLED = ("thoth_core", "fairseq_compat", "attn2d", "depth_adaptive", "memory_layers")  # with their sub-packages
BUILDS = ("auto", "cpu", "cuda", "none")
SHARED = Path("native")  # C++ headers that the plugins' extensions share


def torch_folder() -> Path | None:
    """The folder of the installed PyTorch, whose headers and libraries are used; PyTorch is not imported."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent if spec and spec.origin else Path(sysconfig.get_path("platlib"), "torch")
    return folder if (folder / "include").is_dir() else None


def nvcc() -> Path | None:
    """The CUDA compiler that CUDA_HOME or PATH names."""
    home = os.environ.get("CUDA_HOME")
    compiler = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    return Path(compiler).resolve() if compiler else None


def cuda_home(compiler: Path) -> Path:
    """The folder of CUDA's headers and libraries. The nvcc on PATH may be a script, so it is asked for its folder."""
    if "CUDA_HOME" in os.environ:
        return Path(os.environ["CUDA_HOME"])
    dry_run = subprocess.run([str(compiler), "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    tops = [line.partition("TOP=")[2] for line in dry_run.stderr.splitlines() if line.startswith("#$ TOP=")]
    return Path(tops[0]).resolve() if tops else compiler.parent.parent


def extension(package: str, torch: Path, optional: bool) -> Extension:
    """The extension PACKAGE._C of the C++ sources in PACKAGE/csrc."""
    flags = ["-O3", "-std=c++20", "-DNDEBUG", "-g0"]
    for folder in ("include", "include/torch/csrc/api/include"):
        flags += ["-isystem", str(torch / folder)]
    # The compiler of macOS has no OpenMP: the operators then run in one thread.
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    more = os.environ.get("NATIVE_FLAGS", "").split()
    folder = Path(package, "csrc")
    return Extension(
        f"{package}._C",
        sorted(map(str, folder.glob("*.cpp"))),
        depends=sorted(map(str, [*folder.rglob("*.h"), *SHARED.glob("*.h")])),
        include_dirs=[str(SHARED), str(folder)],
        language="c++",
        extra_compile_args=[*flags, *openmp, *more],
        extra_link_args=[*openmp, *more],
        library_dirs=[str(torch / "lib")],
        libraries=["torch_cpu", "torch", "c10"],
        optional=optional,  # without a compiler the package is installed all the same
    )


def add_cuda(extension: Extension, compiler: Path) -> None:
    """Add the sources in csrc/cuda."""
    home = cuda_home(compiler)
    folder = Path(extension.name.partition(".")[0], "csrc", "cuda")
    extension.sources += sorted(str(path) for path in folder.iterdir() if path.suffix in (".cpp", ".cu"))
    extension.extra_compile_args += ["-isystem", str(home / "include")]
    extension.library_dirs += [str(home / name) for name in ("lib64", "lib") if (home / name).is_dir()]
    extension.libraries += ["c10_cuda", "torch_cuda", "cudart"]


def architectures() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST."""
    flags = []
    for architecture in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0 9.0 10.0+PTX").replace(";", " ").split():
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if architecture.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


class BuildExtensions(build_ext):
    """setuptools' build, with .cu files compiled by nvcc."""

    def build_extension(self, ext: Extension) -> None:
        for source in [name for name in ext.sources if name.endswith(".cu")]:
            target = Path(self.build_temp, source).with_suffix(".cu.o")
            target.parent.mkdir(parents=True, exist_ok=True)
            flags = ["-O3", "-std=c++20", "-Xcompiler", "-fPIC", *architectures()]
            self.spawn([str(nvcc()), "-c", source, "-o", str(target), *flags])
            ext.sources.remove(source)
            ext.extra_objects.append(str(target))
        super().build_extension(ext)


def extensions() -> list[Extension]:
    """The extensions that this machine can build and MEMORY_LAYERS_BUILD allows."""
    build = os.environ.get("MEMORY_LAYERS_BUILD", "auto")
    if build not in BUILDS:
        sys.exit(f"error: MEMORY_LAYERS_BUILD must be one of {', '.join(BUILDS)}, given {build!r}")
    torch = torch_folder()
    if torch is None:
        if build in ("cpu", "cuda"):
            sys.exit(f"error: MEMORY_LAYERS_BUILD={build} needs PyTorch: install torch first")
        print("PyTorch is not installed: the native operators are left out", file=sys.stderr)
        return []
    result = [extension(package, torch, optional=True) for package in ("attn2d", "depth_adaptive")]
    if build != "none":
        memory = extension("memory_layers", torch, optional=build == "auto")
        compiler = nvcc()
        if not any((torch / "lib").glob("*c10_cuda*")):
            missing = "a CUDA build of PyTorch"
        elif compiler is None:
            missing = "nvcc (on PATH or in CUDA_HOME/bin)"
        else:
            folders = [str(cuda_home(compiler) / "include"), *os.environ.get("CPATH", "").split(os.pathsep)]
            has_header = any(Path(folder, "cuda_runtime_api.h").is_file() for folder in folders if folder)
            missing = "" if has_header else "cuda_runtime_api.h (in CUDA_HOME/include or on CPATH)"
        if build == "cuda" and missing:
            sys.exit(f"error: MEMORY_LAYERS_BUILD=cuda needs {missing}")
        if build in ("auto", "cuda") and compiler and not missing:
            add_cuda(memory, compiler)
        result.append(memory)
    return result


os.chdir(Path(__file__).resolve().parent)
setup(
    packages=find_packages(include=[*INSTALLED, *(f"{name}.*" for name in INSTALLED)]),
    package_data={"": ["py.typed", "csrc/*", "csrc/cuda/*"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
)
