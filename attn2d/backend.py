"""The choice between attn2d's compiled CPU operators and PyTorch's own."""

import enum
import logging

import torch
from torch import Tensor

from thoth_core.extensions import load_beside

logger = logging.getLogger(__name__)

BUILT = load_beside(__file__)  # whether the compiled operators are installed
if BUILT and not hasattr(torch.ops.attn2d, "packed_norm_row"):  # the newest of them
    raise ImportError(
        "attn2d's native operators were built from older sources: build them again "
        "(pip install --no-build-isolation -e . in the checkout)"
    )
NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
MISSING = (
    "attn2d's native operators are not built: install the package with a C++ compiler at hand "
    "(pip install --no-build-isolation -e . in the checkout), or choose the backend 'torch'"
)


class Backend(enum.Enum):
    """Which implementation an operator or a module of the grid uses; an immutable value that each of them is given.

    ``NATIVE``: the compiled operators, and an error for tensors that they do not take. ``TORCH``: PyTorch's own.
    ``AUTO``: the compiled operators where they are built and take the tensors, else PyTorch's.
    """

    AUTO = "auto"
    NATIVE = "native"
    TORCH = "torch"

    def is_native_for(self, *tensors: Tensor) -> bool:
        """Whether the compiled operators are to compute with ``tensors``.

        Raises:
            TypeError: the backend is ``NATIVE``, and the device or dtype of a tensor is not supported.
        """
        if self is Backend.TORCH or (self is Backend.AUTO and not BUILT):
            return False
        supported = all(x.device.type in ("cpu", "meta") and x.dtype in NATIVE_DTYPES for x in tensors)
        if self is Backend.NATIVE and not supported:
            inputs = ", ".join(f"{x.dtype} on {x.device}" for x in tensors)
            raise TypeError(
                f"the native grid operators take float32, float64 and bfloat16 on the CPU, given {inputs}; "
                "choose the backend 'auto' or 'torch'"
            )
        return supported


BACKENDS = tuple(backend.value for backend in Backend)


def select(name: str) -> Backend:
    """Return the backend called ``name`` (one of ``BACKENDS``) and log which operators it stands for.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: the backend is ``native``, and the compiled operators are not built.
    """
    if name not in BACKENDS:
        raise ValueError(f"the backend must be one of {', '.join(BACKENDS)}, given {name!r}")
    backend = Backend(name)
    if backend is Backend.NATIVE and not BUILT:
        raise RuntimeError(MISSING)
    automatic = "native on the CPU" if BUILT else "torch (native ones are not built)"
    logger.info("grid operators: %s", automatic if backend is Backend.AUTO else name)
    return backend
