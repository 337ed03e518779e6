"""Matrix products by oneDNN, which PyTorch contains: faster than MKL for few rows or small matrices.

Axes: ... any, I inputs and O outputs of a linear layer.
"""

import torch
from torch import Tensor

AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
# Unlike F.linear, these operators refuse bfloat16 where oneDNN has no kernels for it (x86 without AVX-512).
DTYPES = (
    {torch.float32}
    if AVAILABLE and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else {torch.float32, torch.bfloat16}
)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`product` can multiply ``x`` with ``weight``."""
    return (
        AVAILABLE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in DTYPES
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(x weightᵀ + bias), ``none`` or ``relu``: (..., I), (O, I), (O,) → (..., O). No gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


def packed(weight: Tensor) -> Tensor:
    """A copy of ``weight`` (O, I) in oneDNN's own layout, which does not follow later changes of the weight.

    Without it, every call converts the weight: three times as slow for few rows, as in a decoding step.
    """
    # The layout depends on the number of rows that oneDNN expects. That for many rows is the faster one for few rows
    # too, and oneDNN then needs no preparation for a number of rows that it has not seen.
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 128)
