"""Convolutional networks over the grid: the paper's DenseNet and the authors' later ResNet.

Axes in this package: B batch, T target rows, S source columns, C channels. ``padding`` is a boolean mask, True at
padding: (B, S) of source columns, or (B, T, S) of cells where target positions are padded too; None when there is
none. Padded cells are zeroed before every convolution, so that a sentence's result does not depend on what it is
batched with.
"""

from collections.abc import Callable

from attn2d.convnet.base import ConvNet
from attn2d.convnet.densenet import DenseNet
from attn2d.convnet.norms import NORMS, GridBatchNorm, GridLayerNorm, NoNorm
from attn2d.convnet.resnet import ResNet
from attn2d.convnet.row_cache import RowCache

CONVNETS: dict[str, Callable[..., ConvNet]] = {"resnet": ResNet, "densenet": DenseNet}

__all__ = [
    "CONVNETS",
    "NORMS",
    "ConvNet",
    "DenseNet",
    "GridBatchNorm",
    "GridLayerNorm",
    "NoNorm",
    "ResNet",
    "RowCache",
]
