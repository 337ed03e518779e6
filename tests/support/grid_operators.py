"""Inputs, definitions and tolerances for the tests of attn2d's grid operators.

Axes: B batch, T target rows, R input rows, S source columns, C channels; kernels have h rows and k columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attn2d.backend import Backend

# Largest error relative to the largest value, against the same computation in float64 on the same inputs.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 8e-3,  # one rounding of the result: 2^-8, and gradients of a rounded gradient
}
TWIN_TOLERANCE = {**TOLERANCE, torch.bfloat16: 4e-2}  # PyTorch rounds intermediate results as well
DTYPES = tuple(TOLERANCE)


def tolerance(backend: Backend, dtype: torch.dtype) -> float:
    return (TOLERANCE if backend is Backend.NATIVE else TWIN_TOLERANCE)[dtype]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    error = (actual.detach().double() - expected.detach().double()).abs().max().item()
    scale = max(expected.detach().abs().max().item(), 1e-3)
    assert error <= tolerance * scale, f"{what}: error {error:.2e} at scale {scale:.2e}"


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def seed(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


def conv_inputs(case: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (B, R, S, C) and weight (C, 1, h, k) of a case (B, R, S, C, h, k, dilation, top)."""
    batch, rows, columns, channels, height, width, _, _ = case
    generator = torch.Generator().manual_seed(sum(case))
    x = torch.randn(batch, rows, columns, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, 1, height, width, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype)


def masked_conv(x: Tensor, weight: Tensor, dilation: int, top: int) -> Tensor:
    """The definition in float64: a full kernel with its lower half zero, "same" padding, rows cropped."""
    channels, _, height, width = weight.shape
    full = F.pad(weight.double(), (0, 0, 0, height - 1))  # 2h - 1 rows, those below the current one zero
    image = F.pad(x.double().permute(0, 3, 1, 2), (0, 0, top, 0))
    padding = ((height - 1) * dilation, (width // 2) * dilation)
    y = F.conv2d(image, full, padding=padding, dilation=dilation, groups=channels)
    return y[:, :, (height - 1) * dilation :].permute(0, 2, 3, 1)


def padding_of(batch: int, columns: int) -> Tensor:
    """(B, S): the first sentence whole, then one padded on the right, one on the left, one throughout."""
    padding = torch.zeros(batch, columns, dtype=torch.bool)
    padding[1:2, columns - columns // 3 :] = True
    padding[2:3, : columns // 2] = True
    padding[3:4] = True
    return padding
