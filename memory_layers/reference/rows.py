"""The rows of the table that were read: the norm of their gradient, and a step of Adam on them.

Axes as in :mod:`memory_layers.reference`.
"""

import torch
from torch import Tensor

from memory_layers.reference.bag import row_gradients
from memory_layers.reference.checks import check_adam, check_gradient
from memory_layers.reference.precision import accumulation
from memory_layers.row_updates import AdamState, AdamStep, RowGradients


def rows_squared_norm(gradient: RowGradients, n_slots: int) -> Tensor:
    """The squared Euclidean norm of the gradient of a table of ``n_slots`` rows.

    Returns:
        float64 scalar.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_gradient(gradient)
    total = torch.zeros((), dtype=torch.float64, device=gradient.grad.device)
    for _, gradients in row_gradients(gradient):
        total += gradients.double().square().sum()
    return total


def rows_adam_(values: Tensor, state: AdamState, gradient: RowGradients, step: AdamStep) -> None:
    """One step of Adam on the rows that were read; all other rows, and their moments, keep their bits.

    For a row p with gradient g, moments m and v, as ``torch.optim.SparseAdam`` (and fairseq's Adam)::

        g = scale · sum of weights[t, b] · grad[t] over its (t, b)
        m = beta1 · m + (1 - beta1) · g;  v = beta2 · v + (1 - beta2) · g²
        p = p · (1 - lr · weight_decay) - lr · sqrt(1 - beta2^step) / (1 - beta1^step) · m / (sqrt(v) + eps)

    Args:
        values: (n_slots, V), updated.
        state: updated too; with a float32 copy (``master``), that is updated and rounded into values.
        gradient: factors of the gradient of values.
        step: hyper-parameters.

    Raises:
        ValueError: arguments that do not fit together.
    """
    check_adam(values, state, gradient, step)
    exp_avg, exp_avg_sq, master = state
    with torch.no_grad():
        wide = RowGradients(gradient.grad.to(accumulation(values, gradient.grad)), gradient.slots, gradient.weights)
        for rows, gradients in row_gradients(wide):
            g = gradients.to(exp_avg.dtype) * step.scale
            m = exp_avg[rows].mul_(step.beta1).add_(g, alpha=1 - step.beta1)
            v = exp_avg_sq[rows].mul_(step.beta2).addcmul_(g, g, value=1 - step.beta2)
            p = (values if master is None else master)[rows].to(exp_avg.dtype)
            p.mul_(step.decay).addcdiv_(m, v.sqrt().add_(step.eps), value=-step.size)
            exp_avg[rows], exp_avg_sq[rows], values[rows] = m, v, p.to(values.dtype)
            if master is not None:
                master[rows] = p
