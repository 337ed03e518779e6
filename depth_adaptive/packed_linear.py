"""Linear layers without gradients, on the CPU by oneDNN with packed weights: in the encoder and in a step of decoding.

Axes: ... any leading axes, I inputs and O outputs of a linear layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from thoth_core import onednn

LinearFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _PackedCopy:
    """The packed weight and the bias (O,) of layers side by side, and the tensors of which they are a copy."""

    weight: Tensor
    bias: Tensor | None
    sources: tuple[Tensor, ...]  # kept, so that no new tensor can take their place in memory
    versions: tuple[int, ...]

    def is_current(self, tensors: list[Tensor]) -> bool:
        """Whether the layers still have the tensors that were copied, and nothing has been written to these."""
        return len(tensors) == len(self.sources) and all(
            tensor._version == version
            and tensor.data_ptr() == source.data_ptr()
            and tensor.size() == source.size()
            and tensor.stride() == source.stride()
            for tensor, source, version in zip(tensors, self.sources, self.versions, strict=True)
        )


class PackedLinears(nn.Module):
    """Applies linear layers to one input, with copies of their weights in the layout that oneDNN multiplies fastest.

    The copies take as much memory as the weights. A copy is dropped when the model trains, and replaced when a layer
    has another weight or its weight has been written to. PyTorch does not record writes through ``.data``, as fairseq's
    training in half precision does: in evaluation mode these go unnoticed.

    Layers that are more than their weight (a subclass, hooks, a parametrization, an adapter) are called as modules, and
    so is every layer where oneDNN does not apply (other devices and number formats, gradients, autocast).
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[tuple[nn.Linear, ...], _PackedCopy] = {}

    def __deepcopy__(self, memo: Any) -> "PackedLinears":
        return PackedLinears()

    def __reduce__(self) -> Any:
        return PackedLinears, ()

    def train(self, mode: bool = True) -> "PackedLinears":
        """Set the mode. The copies are dropped unless the model stays in evaluation mode."""
        if mode or self.training:
            self._copies.clear()
        return super().train(mode)

    def applies(self, like: Tensor, *layers: Any) -> bool:
        """Whether oneDNN multiplies inputs of this device and dtype with the weights of ``layers``."""
        return not torch.is_grad_enabled() and all(
            is_plain_linear(layer) and onednn.takes(like, layer.weight) for layer in layers
        )

    def function(self, like: Tensor, *layers: Any, relu: bool = False) -> LinearFunction:
        """A function from x (..., I) to the outputs of ``layers`` side by side (..., sum of O), with or without ReLU.

        It is for inputs of the device and dtype of ``like``. It keeps the weights that the layers have now, and has no
        gradient if it was made without gradients.
        """
        if self.applies(like, *layers):
            copied = self._packed_copy(layers)
            return partial(
                onednn.product, weight=copied.weight, bias=copied.bias, activation="relu" if relu else "none"
            )
        return partial(_call_layers, layers=layers, relu=relu)

    def forward(self, x: Tensor, *layers: Any, relu: bool = False) -> Tensor:
        """The outputs of the ``layers`` for x (..., I), side by side (..., sum of O), with or without ReLU."""
        return self.function(x, *layers, relu=relu)(x)

    def _packed_copy(self, layers: tuple[nn.Linear, ...]) -> _PackedCopy:
        tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
        copied = self._copies.get(layers)
        if copied is None or not copied.is_current(tensors):
            copied = self._copies[layers] = _pack(layers, tensors)
        return copied


def _pack(layers: tuple[nn.Linear, ...], tensors: list[Tensor]) -> _PackedCopy:
    versions = tuple(tensor._version for tensor in tensors)  # before the weights are read
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        biases: list[Tensor] = [
            weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
        ]
        bias = torch.cat(biases)
    return _PackedCopy(onednn.packed(weight), bias, tuple(tensor.detach() for tensor in tensors), versions)


def _call_layers(x: Tensor, layers: tuple[nn.Module, ...], relu: bool) -> Tensor:
    outputs = [layer(x) for layer in layers]
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    return F.relu(y) if relu else y


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` runs forward hooks of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def global_hooks() -> bool:
    """Whether calling any module runs forward hooks that were registered for all modules."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def is_plain_linear(layer: Any) -> bool:
    """Whether calling ``layer`` computes x weightᵀ + bias and does nothing else, and changes of these are recorded."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not has_forward_hooks(layer)
        and not global_hooks()
        and not layer.weight.is_inference()
        and (layer.bias is None or not layer.bias.is_inference())
    )
