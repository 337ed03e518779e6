"""The native operators: attention to keys and values that lie anywhere in a table, which is most of a step of decoding;
the cross-entropy over all logits of an exit, of which a step of training has N; and how sure an exit is.

Axes: A queries, M rows of memory or of logits, X lists of t places, H heads, D dimension, V vocabulary. On the CPU the
native kernels (``csrc/``, threaded and vectorised) read and write in place what their twins, the definitions, copy. The
twins run on other devices, in other number formats and where the extension is not built.

The kernels' results do not depend on the number of threads, bit for bit.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from thoth_core.extensions import load_beside

NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

built = load_beside(__file__)


def attend(queries: Tensor, memory: Tensor, places: Tensor, lists: Tensor | None, heads: int) -> Tensor:
    """softmax(q kᵀ / √(D / H)) v for each query and head (equation 2's attention, one position).

    Args:
        queries: (A, D).
        memory: (M, 2D), a key and then a value in each row.
        places: (X, t) int64, rows of ``memory``; below 0: nothing, as for padding.
        lists: (A,) int64, the list of places that each query attends to; None: its own, X = A.
        heads: H, a divisor of D.

    Returns:
        (A, D); zeros where all places are below 0.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
        IndexError: places or lists out of range.
    """
    native = built and queries.device.type == "cpu" and queries.dtype in NATIVE_DTYPES
    if native and not (torch.is_grad_enabled() and (queries.requires_grad or memory.requires_grad)):
        return torch.ops.depth_adaptive.attend(queries, memory, places, lists, heads)
    return torch_attend(queries, memory, places, lists, heads)


def torch_attend(queries: Tensor, memory: Tensor, places: Tensor, lists: Tensor | None, heads: int) -> Tensor:
    """Twin of :func:`attend`."""
    places = places if lists is None else places[lists]
    a, t = places.shape
    read = memory.index_select(0, places.clamp(min=0).flatten()).view(a, t, 2, heads, -1)
    keys, values = read.permute(2, 0, 3, 1, 4)  # (A, H, t, D / H) each
    real = (places >= 0)[:, None, None]  # (A, 1, 1, t)
    found = F.scaled_dot_product_attention(queries.view(a, heads, 1, -1), keys, values, attn_mask=real)
    return torch.where(real.any(-1, keepdim=True), found, 0).flatten(1)


def cross_entropy_(
    logits: Tensor, targets: Tensor, *, kept: float, spread: float, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row, the log-probability of its target, the sum of all log-probabilities, and whether the target is best.

    Args:
        logits: (M, V), contiguous; afterwards they hold the gradient of -kept · first result - spread · second result
            if ``gradient`` is set, and anything otherwise.
        targets: (M,) int64.
        kept: weight of the target.
        spread: weight of each word.
        gradient: whether the gradient is wanted.

    Returns:
        (M,) in float32 or better, (M,) likewise, and (M,) bool: of equal logits the first is the best.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
        IndexError: targets out of range.
    """
    if built and logits.device.type == "cpu" and logits.dtype in NATIVE_DTYPES:
        return torch.ops.depth_adaptive.cross_entropy_(logits, targets, kept, spread, gradient)
    return torch_cross_entropy_(logits, targets, kept=kept, spread=spread, gradient=gradient)


def torch_cross_entropy_(
    logits: Tensor, targets: Tensor, *, kept: float, spread: float, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of :func:`cross_entropy_`."""
    targets = targets[:, None]
    lprobs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    likelihood, total = lprobs.gather(1, targets).squeeze(1), lprobs.sum(1)
    right = lprobs.argmax(1) == targets.squeeze(1)
    if gradient:
        # The weights sum to kept + V · spread, by which the probabilities count.
        slope = lprobs.exp_().mul_(kept + spread * logits.size(1)).sub_(spread)
        logits.copy_(slope.scatter_add_(1, targets, slope.new_full(targets.shape, -kept)))
    return likelihood, total, right


def top_probability(logits: Tensor) -> Tensor:
    """max softmax(logits) of each row (..., V): (...) in float32 or better.

    Raises:
        RuntimeError: no words at all.
    """
    native = built and logits.device.type == "cpu" and logits.dtype in NATIVE_DTYPES
    if native and not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.ops.depth_adaptive.top_probability(logits.reshape(-1, logits.size(-1))).view(logits.shape[:-1])
    return torch_top_probability(logits)


def torch_top_probability(logits: Tensor) -> Tensor:
    """Twin of :func:`top_probability`."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return 1 / (exact - exact.amax(-1, keepdim=True)).exp().sum(-1)


if built:

    @torch.library.register_fake("depth_adaptive::top_probability")
    def _(logits: Tensor) -> Tensor:
        return logits.new_empty(logits.shape[:1], dtype=torch.promote_types(logits.dtype, torch.float32))

    @torch.library.register_fake("depth_adaptive::cross_entropy_")
    def _(logits: Tensor, targets: Tensor, kept: float, spread: float, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        rows = logits.shape[:1]
        return logits.new_empty(rows, dtype=wide), logits.new_empty(rows, dtype=wide), logits.new_empty(rows).bool()

    @torch.library.register_fake("depth_adaptive::attend")
    def _(queries: Tensor, memory: Tensor, places: Tensor, lists: Tensor | None, heads: int) -> Tensor:
        return torch.empty_like(queries, memory_format=torch.contiguous_format)

    @register_flop_formula(torch.ops.depth_adaptive.attend)
    def _operations(queries: torch.Size, memory: torch.Size, places: torch.Size, *_: object, **__: object) -> int:
        """Scores and sums of values: 2 · A · t · 2D, as the counter's formula of attention has it."""
        return 4 * queries[0] * places[1] * queries[1]
