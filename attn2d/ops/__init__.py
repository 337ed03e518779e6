"""Operators on the grid that PyTorch's CPU kernels are slow at, each with a plain PyTorch twin.

Axes: B batch, T target rows, R input rows, S source columns, C channels (innermost); kernels have h rows and
k columns. On the CPU the native kernels (``csrc/``, threaded and vectorised) compute in float32, float64 and bfloat16
(accumulating in float32). The twins (``torch_...``) are the definition; they run on other devices, in other dtypes and
where the extension is not built. The argument ``backend`` (:class:`attn2d.backend.Backend`) chooses.

Native results do not depend on the number of threads, bit for bit.
"""

from attn2d.ops.convolution import causal_depthwise_conv, torch_causal_depthwise_conv
from attn2d.ops.decoding import follow, norm_row, residual_conv_row, torch_norm_row, torch_residual_conv_row
from attn2d.ops.dropout import draw_seed, dropout, dropout_residual, torch_dropout
from attn2d.ops.layer_norm import layer_norm_gradients, layer_norm_masked, layer_norm_parts, torch_layer_norm_masked
from attn2d.ops.pooling import gated_max, max_over_source, torch_gated_max, torch_max_over_source

__all__ = [
    "causal_depthwise_conv",
    "draw_seed",
    "dropout",
    "dropout_residual",
    "follow",
    "gated_max",
    "layer_norm_gradients",
    "layer_norm_masked",
    "layer_norm_parts",
    "max_over_source",
    "norm_row",
    "residual_conv_row",
    "torch_causal_depthwise_conv",
    "torch_dropout",
    "torch_gated_max",
    "torch_layer_norm_masked",
    "torch_max_over_source",
    "torch_norm_row",
    "torch_residual_conv_row",
]
