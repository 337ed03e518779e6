"""The memory's operators: ``torch.ops.memory_layers``, with gradients and shapes for ``torch.compile``.

Their definitions are the functions of the same names in :mod:`memory_layers.reference`; see there for shapes, the order
of equal scores, and errors. The compiled extension (``csrc/``) brings kernels for the CPU and for CUDA; where there is
none for a device or a number format, the plain PyTorch definitions run. :func:`use` chooses.

The results of the kernels do not depend on the number of threads, bit for bit.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memory_layers import reference
from thoth_core.extensions import load_beside

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "cpu", "cuda", "torch")


class Kernels(NamedTuple):
    """What a device's kernels take, float64 not together with another format; all else goes to the definitions."""

    dtypes: tuple[torch.dtype, ...]
    k: int  # at most
    n: int  # at most: sub-keys a half


KERNELS = {
    "cpu": Kernels((torch.float32, torch.float64, torch.bfloat16), k=46340, n=46340),  # slots numbered in 31 bits
    "cuda": Kernels((torch.float32, torch.float64, torch.float16, torch.bfloat16), k=128, n=4096),
}
MISSING = (
    "memory_layers has no {backend} kernels here: install the package with a C++ compiler{nvcc} at hand "
    "(MEMORY_LAYERS_BUILD={backend} pip install --no-build-isolation -e . in the checkout), or choose the backend "
    "'torch' or 'auto'"
)

SCHEMAS = (
    "product_key_select(Tensor half_scores, int k) -> (Tensor scores, Tensor slots)",
    "product_key_select_backward(Tensor grad, Tensor slots, int n) -> Tensor",
    "product_key_topk(Tensor queries, Tensor sub_keys, int k) -> (Tensor scores, Tensor slots)",
    "product_key_topk_backward(Tensor grad, Tensor slots, Tensor queries, Tensor sub_keys)"
    " -> (Tensor grad_queries, Tensor grad_sub_keys)",
    "weighted_bag(Tensor values, Tensor slots, Tensor weights) -> Tensor",
    "weighted_bag_weights_backward(Tensor grad, Tensor values, Tensor slots) -> Tensor",
    "weighted_bag_values_backward(Tensor grad, Tensor slots, Tensor weights, int n_slots)"
    " -> (Tensor rows, Tensor row_gradients)",
    "product_key_memory(Tensor queries, Tensor sub_keys, Tensor values, int k)"
    " -> (Tensor output, Tensor weights, Tensor slots)",
    "rows_squared_norm(Tensor grad, Tensor slots, Tensor weights, int n_slots) -> Tensor",
    "rows_adam_(Tensor(a!) values, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? master, Tensor grad, "
    "Tensor slots, Tensor weights, float scale, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "int step) -> ()",
)

load_beside(__file__)
_library = torch.library.Library("memory_layers", "DEF")
for _schema in SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_ops = torch.ops.memory_layers
_backend = "auto"
_logged: set[str] = set()


# ---- choice of the implementation --------------------------------------------------------------------------


def _has_kernel(name: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"memory_layers::{name}", device.upper())


def backends() -> dict[str, bool]:
    """Which backends can be chosen here."""
    built = {device: _has_kernel("product_key_memory", device) for device in ("cpu", "cuda")}
    return {"auto": True, "cpu": built["cpu"], "cuda": built["cuda"] and torch.cuda.is_available(), "torch": True}


def backend() -> str:
    """The backend that :func:`use` chose; ``auto`` where nothing was chosen."""
    return _backend


def use(backend: str) -> None:
    """Choose the implementation for the whole process.

    ``cpu``, ``cuda``: that device's kernels, an error for tensors they do not take. ``torch``: the plain definitions.
    ``auto`` (where nothing was chosen): the kernels where they are built and take the tensors, else the definitions.

    Raises:
        ValueError: no such backend.
        RuntimeError: ``cpu`` or ``cuda`` where its kernels are not built, or there is no such device.
    """
    global _backend
    if backend not in BACKENDS:
        raise ValueError(f"the backend must be one of {', '.join(BACKENDS)}, given {backend!r}")
    if not backends()[backend]:
        if backend == "cuda" and _has_kernel("product_key_memory", "cuda"):
            raise RuntimeError("memory_layers has CUDA kernels, but PyTorch finds no CUDA device")
        raise RuntimeError(MISSING.format(backend=backend, nvcc=" and nvcc" if backend == "cuda" else ""))
    if backend not in _logged:
        built = [device for device in ("cpu", "cuda") if backends()[device]]
        logger.info(
            "memory operators: %s%s", backend, f" (kernels: {', '.join(built) or 'none'})" if backend == "auto" else ""
        )
        _logged.add(backend)
    _backend = backend


def _take(device: str, tensors: tuple[Tensor, ...], k: int, n: int) -> bool:
    kernels = KERNELS.get(device)
    return (
        kernels is not None
        and all(x.dtype in kernels.dtypes and x.device.type == device for x in tensors)
        and len({x.dtype == torch.float64 for x in tensors}) == 1
        and k <= kernels.k
        and n <= kernels.n
    )


def check_backend(*tensors: Tensor, k: int = 0, n: int = 0) -> None:
    """Raise TypeError where kernels were asked for that do not take these tensors, k slots or n sub-keys."""
    if _backend not in KERNELS or _take(_backend, tensors, k, n):
        return
    dtypes, most_k, most_n = KERNELS[_backend]
    given = ", ".join(f"{x.dtype} on {x.device}" for x in tensors) + (f", k = {k} and n = {n}" if k else "")
    raise TypeError(
        f"the {_backend} kernels take {', '.join(map(str, dtypes))} on {_backend}, torch.float64 with no other, "
        f"k up to {most_k} and n up to {most_n}, given {given}; choose the backend 'auto' or 'torch'"
    )


def _choose(name: str, *tensors: Tensor, k: int = 0, n: int = 0) -> Callable[..., Any]:
    """The operator, or its plain definition where that is to run on ``tensors``, with k slots of n keys, instead."""
    check_backend(*tensors, k=k, n=n)
    device = tensors[0].device.type
    if _backend == "torch" or (not _take(device, tensors, k, n) and _has_kernel(name, device)):
        return getattr(reference, name)
    return getattr(_ops, name)


# ---- the operators -----------------------------------------------------------------------------------------


def product_key_select(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`memory_layers.reference.product_key_select`: (T, H, 2, N) → scores, slots (T, H, K)."""
    reference.check_select(half_scores, k)
    half_scores = half_scores.to(reference.accumulation(half_scores))
    return _choose("product_key_select", half_scores, k=k, n=half_scores.size(3))(half_scores, k)


def product_key_topk(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`memory_layers.reference.product_key_topk`: (T, H, D), (H, 2, N, D/2) → scores, slots (T, H, K).

    Differentiable in queries and sub_keys, deterministically.
    """
    reference.check_topk(queries, sub_keys, k)
    return _choose("product_key_topk", queries, sub_keys, k=k, n=sub_keys.size(2))(queries, sub_keys, k)


def weighted_bag(values: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """See :func:`memory_layers.reference.weighted_bag`: (n_slots, V), (T, bag), (T, bag) → (T, V).

    Differentiable in weights and, with a sparse (coalesced) gradient, in values, deterministically.
    """
    reference.check_bag(values, slots, weights)
    return _choose("weighted_bag", values, weights)(values, slots, weights)


def weighted_bag_weights_backward(grad: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """See :func:`memory_layers.reference.weighted_bag_weights_backward`: (T, V), (n_slots, V), (T, bag) → (T, bag)."""
    return _choose("weighted_bag_weights_backward", values, grad)(grad, values, slots)


def product_key_memory(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`memory_layers.reference.product_key_memory`: the fused lookup, softmax and bag.

    (T, H, D), (H, 2, N, D/2), (N·N, V) → output (T, V), weights and slots (T, H, K). Differentiable as
    :func:`product_key_topk` and :func:`weighted_bag` are, from the output and the weights.
    """
    reference.check_memory(queries, sub_keys, values, k)
    run = _choose("product_key_memory", queries, sub_keys, values, k=k, n=sub_keys.size(2))
    return run(queries, sub_keys, values, k)


def rows_squared_norm(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> Tensor:
    """See :func:`memory_layers.reference.rows_squared_norm`: (T, V), (T, bag), (T, bag) → float64 scalar."""
    reference.check_triple(grad, slots, weights)
    return _choose("rows_squared_norm", grad, weights)(grad, slots, weights, n_slots)


def rows_adam_(
    values: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    master: Tensor | None,
    grad: Tensor,
    slots: Tensor,
    weights: Tensor,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """See :func:`memory_layers.reference.rows_adam_`: one step of Adam on the rows that were read."""
    reference.check_adam(values, exp_avg, exp_avg_sq, master, grad, slots, weights, step)
    run = _choose("rows_adam_", values, grad, weights)
    with torch.no_grad():
        run(
            values, exp_avg, exp_avg_sq, master, grad, slots, weights, scale, lr, beta1, beta2, eps, weight_decay, step
        )  # fmt: skip
    # The kernels do not tell autograd that they write.
    torch.autograd.graph.increment_version([x for x in (values, exp_avg, exp_avg_sq, master) if x is not None])


# ---- definitions where there is no kernel ------------------------------------------------------------------
# The larger operators are put together from the smaller ones, any of which may have a kernel.


def _topk(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _ops.product_key_select(reference.half_scores(queries, sub_keys), k)


def _topk_backward(grad: Tensor, slots: Tensor, queries: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
    grad_halves = _ops.product_key_select_backward(grad, slots, sub_keys.size(2))
    return reference.key_gradients(grad_halves, queries, sub_keys)


def _memory(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    scores, slots = _ops.product_key_topk(queries, sub_keys, k)
    weights = scores.softmax(dim=-1)
    return _ops.weighted_bag(values, slots.flatten(1), weights.flatten(1)), weights, slots


for _name, _definition in (
    ("product_key_select", reference.product_key_select),
    ("product_key_select_backward", reference.product_key_select_backward),
    ("product_key_topk", _topk),
    ("product_key_topk_backward", _topk_backward),
    ("weighted_bag", reference.weighted_bag),
    ("weighted_bag_weights_backward", reference.weighted_bag_weights_backward),
    ("weighted_bag_values_backward", reference.weighted_bag_values_backward),
    ("product_key_memory", _memory),
    ("rows_squared_norm", reference.rows_squared_norm),
    ("rows_adam_", reference.rows_adam_),
):
    _library.impl(_name, _definition, "CompositeExplicitAutograd")


# ---- autocast ----------------------------------------------------------------------------------------------
# The operators say themselves what they accumulate in: the matrix products inside are not to be rounded.


def _without_autocast(operator: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return operator(*arguments)

    return run


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
for _schema in SCHEMAS:
    _name = _schema.partition("(")[0]
    for _key in ("AutocastCPU", "AutocastCUDA"):
        _library.impl(_name, _without_autocast(getattr(_ops, _name).default), _key)


# ---- shapes ------------------------------------------------------------------------------------------------


def _select_fake(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*half_scores.shape[:2], k)
    scores = half_scores.new_empty(shape, dtype=reference.accumulation(half_scores))
    return scores, half_scores.new_empty(shape, dtype=torch.int64)


def _select_backward_fake(grad: Tensor, slots: Tensor, n: int) -> Tensor:
    return grad.new_empty((*grad.shape[:2], 2, n))


def _topk_fake(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], k)
    scores = queries.new_empty(shape, dtype=reference.accumulation(queries, sub_keys))
    return scores, queries.new_empty(shape, dtype=torch.int64)


def _topk_backward_fake(grad: Tensor, slots: Tensor, queries: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), sub_keys.new_empty(sub_keys.shape)


def _bag_fake(values: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    return values.new_empty(slots.size(0), values.size(1))


def _bag_weights_backward_fake(grad: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    return grad.new_empty(slots.shape, dtype=reference.accumulation(grad, values))


def _bag_values_backward_fake(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
    touched = torch.library.get_ctx().new_dynamic_size()
    return slots.new_empty(touched), grad.new_empty(touched, grad.size(1))


def _memory_fake(queries: Tensor, sub_keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    weights, slots = _topk_fake(queries, sub_keys, k)
    return values.new_empty(queries.size(0), values.size(1)), weights, slots


def _squared_norm_fake(grad: Tensor, slots: Tensor, weights: Tensor, n_slots: int) -> Tensor:
    return grad.new_empty((), dtype=torch.float64)


def _adam_fake(*arguments: Any) -> None:
    return None


for _name, _fake in (
    ("product_key_select", _select_fake),
    ("product_key_select_backward", _select_backward_fake),
    ("product_key_topk", _topk_fake),
    ("product_key_topk_backward", _topk_backward_fake),
    ("weighted_bag", _bag_fake),
    ("weighted_bag_weights_backward", _bag_weights_backward_fake),
    ("weighted_bag_values_backward", _bag_values_backward_fake),
    ("product_key_memory", _memory_fake),
    ("rows_squared_norm", _squared_norm_fake),
    ("rows_adam_", _adam_fake),
):
    torch.library.register_fake(f"memory_layers::{_name}", _fake, lib=_library)


# ---- gradients ---------------------------------------------------------------------------------------------


def _select_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.n = inputs[0].size(3)
    ctx.dtype = inputs[0].dtype
    _, slots = output
    ctx.mark_non_differentiable(slots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(slots)


def _select_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None
    return _ops.product_key_select_backward(grad, ctx.saved_tensors[0], ctx.n).to(ctx.dtype), None


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    queries, sub_keys, _ = inputs
    _, slots = output
    ctx.mark_non_differentiable(slots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, sub_keys, slots)


def _topk_autograd(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
    queries, sub_keys, slots = ctx.saved_tensors
    return *_ops.product_key_topk_backward(grad, slots, queries, sub_keys), None


def _bag_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _values_gradient(grad: Tensor, values: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """The coalesced sparse gradient of values."""
    rows, gradients = _ops.weighted_bag_values_backward(grad, slots, weights, values.size(0))
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), gradients.to(values.dtype), values.shape, check_invariants=False, is_coalesced=True
    )


def _bag_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, slots, weights = ctx.saved_tensors
    grad_values = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_values = _values_gradient(grad, values, slots, weights)
    if ctx.needs_input_grad[2]:
        grad_weights = _ops.weighted_bag_weights_backward(grad, values, slots).to(weights.dtype)
    return grad_values, None, grad_weights


def _memory_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    queries, sub_keys, values, _ = inputs
    _, weights, slots = output
    ctx.mark_non_differentiable(slots)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, sub_keys, values, weights, slots)


def _memory_autograd(ctx: Any, grad: Tensor | None, grad_weights: Tensor | None, _: Any) -> tuple[Any, ...]:
    queries, sub_keys, values, weights, slots = ctx.saved_tensors
    grad_queries = grad_keys = grad_values = None
    bag = slots.flatten(1)
    if grad is not None and ctx.needs_input_grad[2]:
        grad_values = _values_gradient(grad, values, bag, weights.flatten(1))
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        if grad is not None:
            through = _ops.weighted_bag_weights_backward(grad, values, bag).to(weights.dtype).view(weights.shape)
            grad_weights = through if grad_weights is None else grad_weights + through
        if grad_weights is not None:
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_queries, grad_keys = _ops.product_key_topk_backward(grad_scores, slots, queries, sub_keys)
    return grad_queries, grad_keys, grad_values, None


for _name, _backward, _setup in (
    ("product_key_select", _select_backward, _select_setup),
    ("product_key_topk", _topk_autograd, _topk_setup),
    ("weighted_bag", _bag_autograd, _bag_setup),
    ("product_key_memory", _memory_autograd, _memory_setup),
):
    torch.library.register_autograd(f"memory_layers::{_name}", _backward, setup_context=_setup, lib=_library)
