"""The plain formulation of Pervasive Attention's ResNet, which tests and benchmarks compare the model with.

It follows the published formulation: channels before positions (NCHW), k x k kernels whose lower half is zeroed in
every forward pass and computed all the same, PyTorch's own dropout, the grid concatenated before its 1x1 reduction,
padding not masked. Slow on purpose; use :class:`attn2d.model.PervasiveModel`.

Axes: B batch, C channels, T target rows, S source columns, V vocabulary.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2d.aggregators import GatedMaxAggregator
from attn2d.convnet import GridLayerNorm, ResNet
from attn2d.masked_conv import MaskedConv2d


class PlainMaskedConv2d(nn.Conv2d):
    """A k x k convolution with padding on all sides, its weights multiplied by a mask at every call."""

    def __init__(self, conv: MaskedConv2d):
        weight = conv.conv.weight  # (C_out, C_in / groups, h, k)
        channels_out, _, height, width = weight.shape
        super().__init__(
            conv.conv.in_channels,
            channels_out,
            width,
            padding=conv.rows_above,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=False,
            dtype=weight.dtype,
            device=weight.device,
        )
        self.reach = conv.rows_above
        mask = torch.zeros_like(self.weight)
        mask[:, :, :height] = 1
        self.register_buffer("mask", mask)
        with torch.no_grad():
            self.weight.zero_()[:, :, :height] = weight

    def forward(self, x: Tensor, last_only: bool = False) -> Tensor:
        """(B, C, T, S) → same, or (B, C, 1, S) for the last row alone, of which x holds all that it sees."""
        self.weight.data *= self.get_buffer("mask")
        if not last_only:
            return super().forward(x)
        rows = x[:, :, -self.reach - 1 :]
        rows = F.pad(rows, (0, 0, self.reach + 1 - rows.size(2), self.reach))
        return F.conv2d(rows, self.weight, None, 1, (0, self.reach), self.dilation, self.groups)


def normalise(norm: Any, x: Tensor) -> Tensor:
    """PyTorch's layer normalisation over C of x (B, C, T, S)."""
    cells = F.layer_norm(x.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return cells.permute(0, 3, 1, 2)


def plain_linear(linear: Any) -> nn.Linear:
    """PyTorch's own linear layer with a copy of the weights."""
    weight = linear.weight
    plain = nn.Linear(
        weight.size(1), weight.size(0), bias=linear.bias is not None, dtype=weight.dtype, device=weight.device
    )
    plain.load_state_dict(linear.state_dict())
    return plain


class PlainLayer(nn.Module):
    """One ResNetLayer on (B, C, T, S)."""

    def __init__(self, layer: Any):
        super().__init__()
        self.conv_norm = copy.deepcopy(layer.conv_norm)
        self.conv = PlainMaskedConv2d(layer.conv)
        self.ffn_norm = copy.deepcopy(layer.ffn_norm)
        self.expand = plain_linear(layer.expand)
        self.contract = plain_linear(layer.contract)
        self.rows_above = layer.conv.rows_above
        self.dropout = layer.dropout

    def forward(self, x: Tensor, cache: list[Tensor | None] | None = None, index: int = 0) -> Tensor:
        """(B, C, T, S) → same; with a cache, T = 1 and the rows before come from ``cache[index]``."""
        h = normalise(self.conv_norm, x).contiguous()
        if cache is not None:
            above = cache[index]
            h = h if above is None else torch.cat((above, h), dim=2)
            cache[index] = h[:, :, -self.rows_above :]
        h = self.conv(h, last_only=cache is not None)
        x = (x + F.dropout(h, self.dropout, self.training)) * 0.5**0.5
        h = normalise(self.ffn_norm, x).permute(0, 2, 3, 1)
        h = self.contract(F.relu(self.expand(h))).permute(0, 3, 1, 2)
        return (x + F.dropout(h, self.dropout, self.training)) * 0.5**0.5


class PlainPervasive(nn.Module):
    """The same function as a resnet, layer-normalised, gated-max ``model``, with a copy of its weights.

    Args:
        model: an ``attn2d.model.PervasiveModel``.

    Raises:
        ValueError: the model has another network, norm or aggregator.
    """

    def __init__(self, model: Any):
        super().__init__()
        decoder = model.decoder
        convnet, aggregator = decoder.convnet, decoder.aggregator
        if not (
            isinstance(convnet, ResNet)
            and isinstance(convnet.norm, GridLayerNorm)
            and isinstance(aggregator, GatedMaxAggregator)
        ):
            raise ValueError("the plain formulation exists for convnet resnet, norm layer, aggregator gated-max")
        self.source = copy.deepcopy(model.encoder.embedder)
        self.target = copy.deepcopy(decoder.embedder)
        grid = decoder.grid
        self.reduce: nn.Module | None = None
        if grid.reduce_source is not None:
            weight = torch.cat((grid.reduce_source.weight, grid.reduce_target.weight), dim=1)
            reduce = nn.Conv2d(weight.size(1), weight.size(0), 1, dtype=weight.dtype, device=weight.device)
            with torch.no_grad():
                reduce.weight.copy_(weight[:, :, None, None])
                reduce.load_state_dict({"bias": grid.reduce_source.bias}, strict=False)
            self.reduce = reduce
        self.layers = nn.ModuleList(PlainLayer(layer) for layer in convnet.layers)
        self.norm = copy.deepcopy(convnet.norm)
        self.gate = plain_linear(aggregator.gate)
        self.project = plain_linear(decoder.project)
        self.output = plain_linear(decoder.output)
        if decoder.output.weight is decoder.embedder.tokens.weight:
            self.output.weight = self.target.tokens.weight
        self.dropout = decoder.dropout

    def embed(self, embedder: Any, tokens: Tensor) -> Tensor:
        """(B, L) → (B, L, dim)."""
        x = embedder.scale * embedder.tokens(tokens)
        if embedder.positions is not None:
            x = x + embedder.positions(tokens).to(x)
        return F.dropout(x, embedder.dropout, self.training)

    def forward(
        self, source_tokens: Tensor, previous_tokens: Tensor, cache: list[Tensor | None] | None = None
    ) -> Tensor:
        """Source (B, S), previous target tokens (B, T) → logits (B, T, V), or (B, 1, V) of the last with a cache.

        ``cache``: one entry per layer, None before the first step; updated in place.
        """
        source = self.embed(self.source, source_tokens).transpose(1, 2)  # (B, dim, S)
        target = self.embed(self.target, previous_tokens).transpose(1, 2)  # (B, dim, T)
        if cache is not None:
            target = target[:, :, -1:]
        columns = source.unsqueeze(2).expand(-1, -1, target.size(2), -1)
        rows = target.unsqueeze(3).expand(-1, -1, -1, source.size(2))
        x = torch.cat((columns, rows), dim=1)  # (B, C, T, S)
        if self.reduce is not None:
            x = self.reduce(x)
        total = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            x = layer(x, cache, index)
            total = total + x
        x = normalise(self.norm, total / len(self.layers)).permute(0, 2, 3, 1)
        x = F.glu(self.gate(x), dim=-1).permute(0, 3, 1, 2).max(dim=3).values.transpose(1, 2)  # (B, T, C)
        return self.output(self.project(F.dropout(x, self.dropout, self.training)))
