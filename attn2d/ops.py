"""Operators on the grid that PyTorch's CPU kernels are slow at, each with a plain PyTorch twin.

Axes: B batch, T target rows, R input rows, S source columns, C channels (innermost); kernels have h rows and
k columns. On the CPU the native kernels (``csrc/``, threaded and vectorised) do the work in float32, float64
and bfloat16 (accumulating in float32); the twins (``torch_...``) are the definition, and run on other
devices, in other dtypes and where the extension is not built. :func:`use` chooses.

Native results do not depend on the number of threads, bit for bit.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thoth_core.extensions import load_beside

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "native", "torch")
NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
MISSING = (
    "attn2d's native operators are not built: install the package with a C++ compiler at hand "
    "(pip install --no-build-isolation -e . in the checkout), or choose the backend 'torch'"
)

_built = load_beside(__file__)
_native = torch.ops.attn2d
_backend = "auto"
_chosen: list[str] = []  # what use() has logged
_NO_SEED = torch.zeros((), dtype=torch.int64)  # where nothing is dropped


def backends() -> dict[str, bool]:
    """Which backends can be chosen here."""
    return {"auto": True, "native": _built, "torch": True}


def backend() -> str:
    """The backend that :func:`use` chose; ``auto`` where nothing was chosen."""
    return _backend


def use(backend: str) -> None:
    """Choose the implementation for the whole process.

    ``native``: the C++ operators, an error for tensors they do not take. ``torch``: the twins. ``auto``
    (where nothing was chosen): native operators where they are built and take the tensors, else the twins.

    Raises:
        ValueError: no such backend.
        RuntimeError: ``native`` where the extension is not built.
    """
    global _backend
    if backend not in BACKENDS:
        raise ValueError(f"the backend must be one of {', '.join(BACKENDS)}, given {backend!r}")
    if backend == "native" and not _built:
        raise RuntimeError(MISSING)
    if backend != _backend or not _chosen:
        automatic = "native on the CPU" if _built else "torch (native ones are not built)"
        logger.info("grid operators: %s", automatic if backend == "auto" else backend)
        _chosen.append(backend)
    _backend = backend


def check_backend(tensor: Tensor) -> None:
    """Raise a TypeError where the backend that was chosen does not take tensors like this one."""
    _takes(tensor)


def _takes(*tensors: Tensor) -> bool:
    """Whether the native operators are to run on ``tensors``."""
    if _backend == "torch" or (_backend == "auto" and not _built):
        return False
    fits = all(x.device.type in ("cpu", "meta") and x.dtype in NATIVE_DTYPES for x in tensors)
    if _backend == "native" and not fits:
        given = ", ".join(f"{x.dtype} on {x.device}" for x in tensors)
        raise TypeError(
            f"the native grid operators take float32, float64 and bfloat16 on the CPU, given {given}; "
            "choose the backend 'auto' or 'torch'"
        )
    return fits


def _promoted(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common dtype (they differ under autocast)."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) for x in tensors]


# ---- depthwise convolution ---------------------------------------------------------------------------------


def causal_depthwise_conv(x: Tensor, weight: Tensor, *, dilation: int = 1, top: int = 0) -> Tensor:
    """Depthwise convolution that is "valid" along the rows and "same" along the columns.

    Output row t uses rows t, t + dilation, ..., t + (h - 1)·dilation of x with ``top`` rows of zeros above;
    with top = (h - 1)·dilation the convolution is causal and keeps the number of rows.

    Args:
        x: (B, R, S, C).
        weight: (C, 1, h, k), k odd.
        dilation: distance between taps, along both axes.
        top: rows of zeros above x; they are not materialised.

    Returns:
        (B, R + top - (h - 1)·dilation, S, C)

    Raises:
        RuntimeError: shapes that do not fit, or an even k.
    """
    x, weight = _promoted(x, weight)
    if _takes(x, weight):
        return _native.causal_depthwise_conv(x, weight, dilation, top)
    return torch_causal_depthwise_conv(x, weight, dilation=dilation, top=top)


def torch_causal_depthwise_conv(x: Tensor, weight: Tensor, *, dilation: int = 1, top: int = 0) -> Tensor:
    """Twin of :func:`causal_depthwise_conv`."""
    channels, _, height, width = weight.shape
    if width % 2 == 0:
        raise RuntimeError(f"the kernel must have an odd number of columns, given {height} x {width}")
    if x.numel() == 0:  # not every convolution of PyTorch's takes an empty image
        rows = x.size(1) + top - (height - 1) * dilation
        return x.sum() * weight.sum() * x.new_zeros(x.size(0), rows, x.size(2), channels)
    # The permuted view of a channels-innermost tensor is PyTorch's channels_last: no copy on either device.
    image = F.pad(x.permute(0, 3, 1, 2), (0, 0, top, 0))
    padding = (0, (width // 2) * dilation)
    return F.conv2d(image, weight, padding=padding, dilation=dilation, groups=channels).permute(0, 2, 3, 1)


# ---- dropout -----------------------------------------------------------------------------------------------


def draw_seed() -> Tensor:
    """A seed for one dropout mask, an int64 scalar from the default generator: torch.manual_seed and restored
    generator states reproduce the masks."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)


def _check_p(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"the dropout probability must lie in [0, 1], given {p}")


def dropout(h: Tensor, *, p: float, seed: Tensor | None = None) -> Tensor:
    """h with each element dropped with probability p and the others scaled up so that the mean stays.

    The native mask is Philox-4x32-10 (Salmon et al., SC 2011; 16 bits an element) of ``seed`` and the
    element's index, drawn again in the backward instead of being kept. p is rounded to a multiple of 2^-16,
    and what is kept is scaled by 1 / (1 - the rounded p).

    Args:
        h: any shape.
        p: probability; 0 returns h.
        seed: int64 scalar on the CPU; drawn by :func:`draw_seed` if None.
    """
    _check_p(p)
    if p == 0:
        return h
    if _takes(h):
        return _native.dropout(h, p, draw_seed() if seed is None else seed)
    return torch_dropout(h, p=p, seed=seed)


def dropout_residual(x: Tensor, h: Tensor, *, p: float, scale: float = 1.0, seed: Tensor | None = None) -> Tensor:
    """(x + dropout(h)) · scale in one pass; x and h of one shape, see :func:`dropout`."""
    _check_p(p)
    if x.shape != h.shape:
        raise RuntimeError(f"x and h must have one shape, given {tuple(x.shape)} and {tuple(h.shape)}")
    x, h = _promoted(x, h)
    if not _takes(x, h):
        return (x + torch_dropout(h, p=p, seed=seed)) * scale
    if seed is None:
        seed = draw_seed() if p else _NO_SEED
    return _native.dropout_residual(x, h, p, scale, seed)


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


# ---- maximum over the source -------------------------------------------------------------------------------


def max_over_source(x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The maximum over the columns that are not padding, and where it is.

    Args:
        x: (B, T, S, C).
        padding: (B, S) bool, True at padded columns; None if there are none.

    Returns:
        values (B, T, C) and indices (B, T, C) int64: the lowest index of the maximum. A sentence without a
        real column gives zeros and index 0, and has no gradient.
    """
    if _takes(x):
        return _native.max_over_source(x, _padding(x, padding), False)
    return torch_max_over_source(x, padding)


def gated_max(x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`max_over_source` of a gated linear unit, x (B, T, S, 2C) → a · sigmoid(b) → (B, T, C).

    The unit's output is not written, and the backward computes gates at the maxima only.
    """
    if _takes(x):
        return _native.max_over_source(x, _padding(x, padding), True)
    return torch_gated_max(x, padding)


def _padding(x: Tensor, padding: Tensor | None) -> Tensor:
    if padding is None:
        return torch.zeros(x.size(0), x.size(2), dtype=torch.bool, device=x.device)
    return padding


def torch_max_over_source(x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Twin of :func:`max_over_source`."""
    if padding is None:
        values, indices = x.max(dim=2)
        return values, indices
    values, indices = x.masked_fill(padding[:, None, :, None], float("-inf")).max(dim=2)
    empty = padding.all(dim=1)[:, None, None]
    return values.masked_fill(empty, 0), indices.masked_fill(empty, 0)


def torch_gated_max(x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Twin of :func:`gated_max`."""
    return torch_max_over_source(F.glu(x, dim=-1), padding)


# ---- layer norm --------------------------------------------------------------------------------------------


def layer_norm_masked(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, padding: Tensor | None = None
) -> Tensor:
    """Layer norm over the channels, with zeros written at padded cells, in one pass.

    Args:
        x: (B, T, S, C).
        weight, bias: (C,).
        padding: (B, S) or (B, T, S) bool, True at padded columns or cells; None if there are none.
    """
    x, weight, bias = _promoted(x, weight, bias)
    if not _takes(x, weight, bias):
        return torch_layer_norm_masked(x, weight, bias, eps=eps, padding=padding)
    if padding is not None and padding.dim() == x.dim() - 2:
        padding = padding.unsqueeze(1).expand(x.shape[:-1])
    return _native.layer_norm_masked(x, weight, bias, eps, padding)[0]


def torch_layer_norm_masked(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, padding: Tensor | None = None
) -> Tensor:
    """Twin of :func:`layer_norm_masked`."""
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if padding is None:
        return y
    if padding.dim() == x.dim() - 2:
        padding = padding.unsqueeze(1)
    return y.masked_fill(padding.unsqueeze(-1), 0)


def layer_norm_parts(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the channels, without autograd: its result and what :func:`layer_norm_gradients` needs.

    Args:
        x: (..., C) of four axes; weight, bias: (C,); all of one dtype.

    Returns:
        y as x, and each cell's mean and inverse standard deviation.
    """
    if _takes(x, weight, bias):
        return _native.layer_norm_masked(x, weight, bias, eps, None)
    return torch.ops.aten.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


def layer_norm_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, from that of y; the other arguments are :func:`layer_norm_parts`'s."""
    if _takes(x, weight, bias):
        return _native.layer_norm_masked_grad(grad, x, weight, mean, rstd, None)
    return torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, bias, [True, True, True]
    )


# ---- decoding ----------------------------------------------------------------------------------------------


def residual_conv_step(
    x: Tensor,
    rows: list[Tensor],
    origins: Tensor | None,
    *,
    weight: Tensor,
    dilation: int,
    scale: float,
    norm: nn.LayerNorm,
    next_norm: nn.LayerNorm,
    padding: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One row of a residual depthwise convolution, without autograd: a step of incremental decoding.

    row = norm(x), zero at padded columns; joined = (x + conv(rows before, row)) · scale; normed = next_norm(joined).

    Args:
        x: (B, 1, S, C).
        rows: what the steps before returned, the oldest first, at most (h - 1)·dilation of them; those missing are
            zeros. They stay where they are: nothing is copied when hypotheses are reordered.
        origins: (len(rows), B) int64, which hypothesis of each row every one of x continues; None without rows.
        weight: (C, 1, h, k), k odd.
        padding: (B, S) bool, True at padded columns; None if there are none.

    Returns:
        joined and normed, (B, 1, S, C), and row in a form that is this operator's own, which depends on the backend.
    """
    tensors = (x, weight, norm.weight, norm.bias, next_norm.weight, next_norm.bias)
    if not _takes(*tensors) or len({tensor.dtype for tensor in tensors}) > 1:
        return torch_residual_conv_step(
            x,
            rows,
            origins,
            weight=weight,
            dilation=dilation,
            scale=scale,
            norm=norm,
            next_norm=next_norm,
            padding=padding,
        )
    return _native.residual_conv_step(
        x,
        rows,
        origins,
        weight,
        dilation,
        scale,
        norm.weight,
        norm.bias,
        norm.eps,
        next_norm.weight,
        next_norm.bias,
        next_norm.eps,
        padding,
    )


def torch_residual_conv_step(
    x: Tensor,
    rows: list[Tensor],
    origins: Tensor | None,
    *,
    weight: Tensor,
    dilation: int,
    scale: float,
    norm: nn.LayerNorm,
    next_norm: nn.LayerNorm,
    padding: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of :func:`residual_conv_step`; its rows are (B, 1, S, C)."""
    row = norm(x)
    if padding is not None:
        row = row.masked_fill(padding[:, None, :, None], 0)
    stack = torch.cat((*follow(rows, origins), row), dim=1)
    top = (weight.size(2) - 1) * dilation - len(rows)
    joined = (x + torch_causal_depthwise_conv(stack, weight, dilation=dilation, top=top)) * scale
    return joined, next_norm(joined), row


def follow(rows: list[Tensor], origins: Tensor | None) -> list[Tensor]:
    """Rows (B', 1, S, C) as each hypothesis continues them, (B, 1, S, C); ``origins`` (len(rows), B)."""
    return [] if origins is None else [row.index_select(0, origin) for row, origin in zip(rows, origins, strict=True)]


# ---- gradients and shapes of the native operators ----------------------------------------------------------


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.dilation, ctx.top = inputs
    ctx.save_for_backward(x, weight)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _native.causal_depthwise_conv_input_grad(grad, weight, ctx.dilation, ctx.top)
    if ctx.needs_input_grad[1]:
        height, width = weight.shape[2:]
        grad_weight = _native.causal_depthwise_conv_weight_grad(x, grad, height, width, ctx.dilation, ctx.top)
    return grad_x, grad_weight, None, None


def _conv_fake(x: Tensor, weight: Tensor, dilation: int, top: int) -> Tensor:
    return x.new_empty(x.size(0), x.size(1) + top - (weight.size(2) - 1) * dilation, x.size(2), x.size(3))


def _conv_input_grad_fake(grad: Tensor, weight: Tensor, dilation: int, top: int) -> Tensor:
    return grad.new_empty(grad.size(0), grad.size(1) + (weight.size(2) - 1) * dilation - top, *grad.shape[2:])


def _conv_weight_grad_fake(x: Tensor, grad: Tensor, height: int, width: int, dilation: int, top: int) -> Tensor:
    return x.new_empty(x.size(3), 1, height, width)


def _dropout_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _dropout_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # The gradient of dropout is dropout with the same mask.
    return _native.dropout(grad, ctx.p, ctx.saved_tensors[0]), None, None


def _dropout_fake(h: Tensor, p: float, seed: Tensor) -> Tensor:
    return h.new_empty(h.shape)


def _residual_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, ctx.p, ctx.scale, seed = inputs
    ctx.save_for_backward(seed)


def _residual_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_x, grad_h = _native.dropout_residual_grad(grad, ctx.p, ctx.scale, ctx.saved_tensors[0])
    return grad_x, grad_h, None, None, None


def _residual_fake(x: Tensor, h: Tensor, p: float, scale: float, seed: Tensor) -> Tensor:
    return h.new_empty(h.shape)


def _residual_grad_fake(grad: Tensor, p: float, scale: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape)


def _max_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, padding, ctx.gated = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    if not ctx.gated:
        x = x.new_empty(()).expand(x.shape)  # the backward needs the shape alone
    ctx.save_for_backward(x, output[1], padding)


def _max_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
    x, indices, padding = ctx.saved_tensors
    return _native.max_over_source_grad(grad, indices, x, padding, ctx.gated), None, None


def _max_fake(x: Tensor, padding: Tensor, gated: bool) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], x.size(3) // 2 if gated else x.size(3))
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _max_grad_fake(grad: Tensor, indices: Tensor, x: Tensor, padding: Tensor, gated: bool) -> Tensor:
    return x.new_empty(x.shape)


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, _, padding = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, mean, rstd, padding)


def _norm_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None, None
    x, weight, mean, rstd, padding = ctx.saved_tensors
    return *_native.layer_norm_masked_grad(grad, x, weight, mean, rstd, padding), None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _norm_fake(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, padding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    cells = x.numel() // x.size(-1)
    return x.new_empty(x.shape), x.new_empty(cells, dtype=_wide(x)), x.new_empty(cells, dtype=_wide(x))


def _norm_grad_fake(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _step_fake(x: Tensor, rows: list[Tensor], origins: Tensor | None, weight: Tensor, dilation: int, *_: Any) -> Any:
    margins = 2 * (weight.size(3) // 2) * dilation
    row = x.new_empty(x.size(0), (x.size(3) + 15) // 16, x.size(2) + margins, 16, dtype=_wide(x))
    return x.new_empty(x.shape), x.new_empty(x.shape), row


if _built:
    for _name, _fake in (
        ("causal_depthwise_conv", _conv_fake),
        ("causal_depthwise_conv_input_grad", _conv_input_grad_fake),
        ("causal_depthwise_conv_weight_grad", _conv_weight_grad_fake),
        ("dropout", _dropout_fake),
        ("dropout_residual", _residual_fake),
        ("dropout_residual_grad", _residual_grad_fake),
        ("max_over_source", _max_fake),
        ("max_over_source_grad", _max_grad_fake),
        ("layer_norm_masked", _norm_fake),
        ("layer_norm_masked_grad", _norm_grad_fake),
        ("residual_conv_step", _step_fake),
    ):
        torch.library.register_fake(f"attn2d::{_name}", _fake)
    for _name, _backward, _setup in (
        ("causal_depthwise_conv", _conv_backward, _conv_setup),
        ("dropout", _dropout_backward, _dropout_setup),
        ("dropout_residual", _residual_backward, _residual_setup),
        ("max_over_source", _max_backward, _max_setup),
        ("layer_norm_masked", _norm_backward, _norm_setup),
    ):
        torch.library.register_autograd(f"attn2d::{_name}", _backward, setup_context=_setup)
