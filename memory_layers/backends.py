"""The backends of the operators: which there are, what their kernels take, and errors that say so."""

from typing import NamedTuple

import torch
from torch import Tensor

from memory_layers import library  # noqa: F401  (defines the operators that kernels are looked up for)

BACKENDS = ("auto", "cpu", "cuda", "torch")


class Kernels(NamedTuple):
    """What a device's kernels take, float64 only alone; everything else goes to the plain definitions."""

    dtypes: tuple[torch.dtype, ...]
    k: int  # largest number of selected slots
    n: int  # largest number of sub-keys per half


KERNELS = {
    "cpu": Kernels((torch.float32, torch.float64, torch.bfloat16), k=46340, n=46340),  # slots numbered in 31 bits
    "cuda": Kernels((torch.float32, torch.float64, torch.float16, torch.bfloat16), k=128, n=4096),
}
MISSING = (
    "memory_layers has no {backend} kernels here: install the package with a C++ compiler{nvcc} "
    "(MEMORY_LAYERS_BUILD={backend} pip install --no-build-isolation -e . in the checkout), or choose the backend "
    "'torch' or 'auto'"
)


def has_kernel(name: str, device: str) -> bool:
    """Whether the operator ``name`` has a compiled kernel for ``device`` (``cpu`` or ``cuda``)."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"memory_layers::{name}", device.upper())


def backends() -> dict[str, bool]:
    """Every backend, and whether it can be chosen on this machine."""
    built = {device: has_kernel("product_key_memory", device) for device in ("cpu", "cuda")}
    return {"auto": True, "cpu": built["cpu"], "cuda": built["cuda"] and torch.cuda.is_available(), "torch": True}


def described(backend: str) -> str:
    """The backend for the log, such as ``auto (kernels: cpu)``."""
    if backend != "auto":
        return backend
    built = [device for device in ("cpu", "cuda") if backends()[device]]
    return f"auto (kernels: {', '.join(built) or 'none'})"


def check_available(backend: str) -> None:
    """Check that a backend can be chosen on this machine.

    Raises:
        ValueError: no such backend.
        RuntimeError: ``cpu`` or ``cuda`` where its kernels are not built, or there is no such device.
    """
    if backend not in BACKENDS:
        raise ValueError(f"the backend must be one of {', '.join(BACKENDS)}, given {backend!r}")
    if not backends()[backend]:
        if backend == "cuda" and has_kernel("product_key_memory", "cuda"):
            raise RuntimeError("memory_layers has CUDA kernels, but PyTorch finds no CUDA device")
        raise RuntimeError(MISSING.format(backend=backend, nvcc=" and nvcc" if backend == "cuda" else ""))


def takes(device: str, tensors: tuple[Tensor, ...], k: int, n: int) -> bool:
    """Whether the device has kernels that take these tensors with k selected slots of n sub-keys per half."""
    kernels = KERNELS.get(device)
    return (
        kernels is not None
        and all(x.dtype in kernels.dtypes and x.device.type == device for x in tensors)
        and len({x.dtype == torch.float64 for x in tensors}) == 1
        and k <= kernels.k
        and n <= kernels.n
    )


def check_takes(backend: str, *tensors: Tensor, k: int = 0, n: int = 0) -> None:
    """Raise TypeError if ``backend`` names kernels that do not take these tensors, k slots or n sub-keys."""
    if backend not in KERNELS or takes(backend, tensors, k, n):
        return
    dtypes, most_k, most_n = KERNELS[backend]
    inputs = ", ".join(f"{x.dtype} on {x.device}" for x in tensors) + (f", k = {k} and n = {n}" if k else "")
    raise TypeError(
        f"the {backend} kernels take {', '.join(map(str, dtypes))} on {backend}, torch.float64 with no other, "
        f"k up to {most_k} and n up to {most_n}, given {inputs}; choose the backend 'auto' or 'torch'"
    )
