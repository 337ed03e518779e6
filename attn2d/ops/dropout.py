"""Dropout, alone and with a residual sum, with masks that are drawn again in the backward pass instead of kept."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn2d.backend import BUILT, Backend
from attn2d.ops.dtypes import promoted

_NO_SEED = torch.zeros((), dtype=torch.int64)  # used where nothing is dropped; never written to


def draw_seed() -> Tensor:
    """Draw the seed of one dropout mask, an int64 scalar, from PyTorch's default generator.

    So torch.manual_seed and restored generator states reproduce the masks.
    """
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)


def _check_p(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"the dropout probability must lie in [0, 1], given {p}")


def dropout(h: Tensor, *, p: float, seed: Tensor | None = None, backend: Backend = Backend.AUTO) -> Tensor:
    """h with each element dropped with probability p and the others scaled up so that the mean stays.

    The native mask is Philox-4x32-10 (Salmon et al., SC 2011; 16 bits an element) of ``seed`` and the
    element's index. p is rounded to a multiple of 2^-16, and what is kept is scaled by 1 / (1 - the rounded p).

    Args:
        h: any shape.
        p: probability; 0 returns h.
        seed: int64 scalar on the CPU; drawn by :func:`draw_seed` if None.

    Raises:
        ValueError: p is outside [0, 1].
    """
    _check_p(p)
    if p == 0:
        return h
    if backend.is_native_for(h):
        return torch.ops.attn2d.dropout(h, p, draw_seed() if seed is None else seed)
    return torch_dropout(h, p=p, seed=seed)


def dropout_residual(
    x: Tensor,
    h: Tensor,
    *,
    p: float,
    scale: float = 1.0,
    seed: Tensor | None = None,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """(x + dropout(h)) · scale in one pass; x and h of one shape, see :func:`dropout`.

    Raises:
        ValueError: p is outside [0, 1].
        RuntimeError: x and h differ in shape.
    """
    _check_p(p)
    if x.shape != h.shape:
        raise RuntimeError(f"x and h must have one shape, given {tuple(x.shape)} and {tuple(h.shape)}")
    x, h = promoted(x, h)
    if not backend.is_native_for(x, h):
        return (x + torch_dropout(h, p=p, seed=seed)) * scale
    if seed is None:
        seed = draw_seed() if p else _NO_SEED
    return torch.ops.attn2d.dropout_residual(x, h, p, scale, seed)


def torch_dropout(h: Tensor, *, p: float, seed: Tensor | None = None) -> Tensor:
    """Twin of :func:`dropout`, with other masks; on CUDA without a seed it is F.dropout."""
    threshold = round(p * 65536)
    if threshold == 0:
        return h
    if h.device.type != "cpu" and seed is None:
        return F.dropout(h, p)
    seed = draw_seed() if seed is None else seed
    generator = torch.Generator(device=h.device).manual_seed(int(seed))
    # 16 random bits an element, as in the native kernel, four from each 64-bit word: several times faster on
    # the CPU than bernoulli_. The lower bound makes all 64 bits of a word random.
    words = torch.empty((h.numel() + 3) // 4, dtype=torch.int64, device=h.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: h.numel()].view(h.shape)
    kept = bits > threshold - 32769
    return torch.where(kept, h * (65536 / max(65536 - threshold, 1)), 0.0)


def _dropout_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _dropout_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # The gradient of dropout is dropout with the same mask.
    return torch.ops.attn2d.dropout(grad, ctx.p, ctx.saved_tensors[0]), None, None


def _dropout_fake(h: Tensor, p: float, seed: Tensor) -> Tensor:
    return h.new_empty(h.shape)


def _residual_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, ctx.p, ctx.scale, seed = inputs
    ctx.save_for_backward(seed)


def _residual_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_x, grad_h = torch.ops.attn2d.dropout_residual_grad(grad, ctx.p, ctx.scale, ctx.saved_tensors[0])
    return grad_x, grad_h, None, None, None


def _residual_fake(x: Tensor, h: Tensor, p: float, scale: float, seed: Tensor) -> Tensor:
    return h.new_empty(h.shape)


def _residual_grad_fake(grad: Tensor, p: float, scale: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape)


if BUILT:
    torch.library.register_fake("attn2d::dropout", _dropout_fake)
    torch.library.register_autograd("attn2d::dropout", _dropout_backward, setup_context=_dropout_setup)
    torch.library.register_fake("attn2d::dropout_residual", _residual_fake)
    torch.library.register_fake("attn2d::dropout_residual_grad", _residual_grad_fake)
    torch.library.register_autograd("attn2d::dropout_residual", _residual_backward, setup_context=_residual_setup)
