"""Compile the CUDA kernels for every supported device: ``make cuda-check``. No GPU is needed.

It needs nvcc ($CUDA_HOME/bin/nvcc, or on the PATH) and a C++ compiler, but no PyTorch. It prints the registers, the
spilled bytes and the shared memory of every kernel, and fails if a kernel does not compile or one of ours spills.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# The compiler does not report dynamic shared memory: this program prints what the launches compute.
SHARED = r"""
#include <cstdio>
#include "launch.h"
using namespace memory_layers::cuda;
template <class S>
void select(const char* type) {
  for (int k : {8, 32, 128})
    for (int n : {256, 512, 1024, 4096}) {
      const int bytes = SelectMemory<S>::bytes(n, k), warps = select_warps(bytes);
      std::printf("select_kernel<%s>  n = %4d  k = %3d  %d warps  %5d bytes\n", type, n, k, warps, warps * bytes);
    }
}
template <class S>
void bag(const char* type) {
  for (int dim : {64, 512, 1024}) {
    const int width = 16 / sizeof(S);
    const BagShape shape = bag_shape<S>(dim / width, width);
    std::printf("bag_kernel<%s>  dim = %4d  %3d x %2d threads  %5d bytes\n", type, dim, shape.columns, shape.groups,
                shape.bytes);
  }
}
int main() {
  select<float>("float");
  select<double>("double");
  bag<float>("float");
  bag<bfloat16>("bfloat16");
}
"""

ENTRY = re.compile(r"Compiling entry function '(?P<name>\S+?)' for '(?P<arch>\w+)'")
SPILL = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
USED = re.compile(r"Used (?P<registers>\d+) registers")
STATIC = re.compile(r"(\d+) bytes smem")


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")
    if nvcc is None:
        sys.exit("error: no nvcc: install the CUDA toolkit and set CUDA_HOME to its folder, or put nvcc on the PATH")
    return nvcc


def run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nerror: {' '.join(command)} failed")
    return done.stdout


def demangled(names: list[str]) -> list[str]:
    """Readable names without namespaces and parameters, if c++filt is installed."""
    if shutil.which("c++filt") is None:
        return names
    text = subprocess.run(["c++filt"], input="\n".join(names), stdout=subprocess.PIPE, text=True, check=True).stdout
    return [
        re.sub(r"\(.*", "", re.sub(r"memory_layers::cuda::|\bvoid |\((?:int|bool)\)", "", line))
        for line in text.splitlines()
    ]


def report(nvcc: str, source: Path, folder: str) -> list[dict[str, str]]:
    """One dictionary per kernel and architecture."""
    codes = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in ARCHITECTURES]
    target = str(Path(folder, source.stem + ".o"))
    output = run(nvcc, "-c", str(source), "-o", target, "-O3", "-std=c++20", "-Xptxas=-v", *codes)
    kernels: list[dict[str, str]] = []
    for line in output.splitlines():
        if match := ENTRY.search(line):
            kernels.append({**match.groupdict(), "shared": "0"})
        elif kernels:
            for pattern in (SPILL, USED):
                if match := pattern.search(line):
                    kernels[-1].update(match.groupdict())
            if match := STATIC.search(line):
                kernels[-1]["shared"] = match[1]
    missing = [kernel["name"] for kernel in kernels if "stores" not in kernel or "registers" not in kernel]
    if missing or {kernel["arch"] for kernel in kernels} != set(ARCHITECTURES):
        sys.exit(f"{output}\nerror: {source.name}: the compiler's report lacks {missing or 'an architecture'}")
    for kernel, name in zip(kernels, demangled([kernel["name"] for kernel in kernels]), strict=True):
        kernel["name"] = name
    return kernels


def spilled(kernel: dict[str, str]) -> int:
    return int(kernel["stores"]) + int(kernel["loads"])


def main() -> None:
    nvcc = find_nvcc()
    print(*(line for line in run(nvcc, "--version").splitlines() if "release" in line))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "shared.cu")
        program.write_text(SHARED)
        run(nvcc, str(program), "-o", str(program.with_suffix("")), "-std=c++20", "-O0", f"-I{FOLDER}")
        shared = run(str(program.with_suffix("")))
        kernels = report(nvcc, FOLDER / "kernels.cu", folder)
        library = report(nvcc, FOLDER / "sort.cu", folder)
    names = sorted({kernel["name"] for kernel in kernels})
    cells = {(k["name"], k["arch"]): f"{k['registers']} / {spilled(k)} / {k['shared']}" for k in kernels}
    title = "registers / bytes spilled / bytes of static shared memory"
    width = max(map(len, (title, *names)))
    print(f"{title:{width}}", *(f"{arch:>12}" for arch in ARCHITECTURES))
    for name in names:
        print(f"{name:{width}}", *(f"{cells[name, arch]:>12}" for arch in ARCHITECTURES))
    print(f"\nshared memory of a block, set at launch\n{shared}")
    print(f"CUB's sort: {len(library)} kernels, at most {max(int(k['registers']) for k in library)} registers")
    spilling = sorted({kernel["name"] for kernel in kernels if spilled(kernel)})
    if spilling:
        sys.exit(f"error: {len(spilling)} of {len(names)} kernels spill registers: {', '.join(spilling)}")
    print(f"{len(names)} kernels for {', '.join(ARCHITECTURES)}: 0 bytes spilled, at any k")


if __name__ == "__main__":
    main()
