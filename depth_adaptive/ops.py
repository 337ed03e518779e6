"""Native operators: attention to scattered keys and values, cross-entropy with its gradient, and confidence of an exit.

Each operator is defined by its twin in PyTorch. On the CPU, native kernels (``csrc/``, threaded and vectorised) read
and write in place what the twins copy. The twins run on other devices, for other number formats, and where the
extension is not built. The results of the kernels are the same, bit for bit, for any number of threads.

Axes: A queries, M rows of memory or of logits, X lists of t places, H heads, D dimension, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from thoth_core.extensions import load_beside

NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

built = load_beside(__file__)


def attend(queries: Tensor, memory: Tensor, places: Tensor, lists: Tensor | None, heads: int) -> Tensor:
    """softmax(q kᵀ / √(D / H)) v for each query and head: the attention of equation 2 at one position.

    Args:
        queries: (A, D).
        memory: (M, 2D), the key and then the value in each row.
        places: (X, t) int64, rows of ``memory``; places below 0 take no part, as for padding.
        lists: (A,) int64, the list of places that each query attends to; None: query i attends to list i (X = A).
        heads: number H of heads, a divisor of D.

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
    attended = F.scaled_dot_product_attention(queries.view(a, heads, 1, -1), keys, values, attn_mask=real)
    return torch.where(real.any(-1, keepdim=True), attended, 0).flatten(1)


def cross_entropy_(
    logits: Tensor, targets: Tensor, *, kept: float, spread: float, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of each row, with its gradient in place of the logits.

    Args:
        logits: (M, V), contiguous. If ``gradient`` is set, they are replaced by the gradient of
            -kept · (first result) - spread · (second result); otherwise they are arbitrary afterwards.
        targets: (M,) int64.
        kept: weight of the target.
        spread: weight of each token of the vocabulary.
        gradient: whether to compute the gradient.

    Returns:
        The log-probability of the target (M,) and the sum of all log-probabilities (M,), both in float32 or better,
        and whether the target has the largest logit (M,), of equal ones the first.

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
        # The probabilities are multiplied by the sum of all weights, kept + V · spread.
        slope = lprobs.exp_().mul_(kept + spread * logits.size(1)).sub_(spread)
        logits.copy_(slope.scatter_add_(1, targets, slope.new_full(targets.shape, -kept)))
    return likelihood, total, right


def top_probability(logits: Tensor) -> Tensor:
    """The largest probability (...) of softmax(logits) for ``logits`` (..., V), in float32 or better.

    Raises:
        RuntimeError: the vocabulary is empty.
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
        """Scores and sums of values, 2 · A · t · 2D, as in PyTorch's formula for attention."""
        return 4 * queries[0] * places[1] * queries[1]
