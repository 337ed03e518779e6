"""Products with the weights of linear layers where they do not learn: in the encoder, and in a step of decoding.

Axes: ... any, I inputs of a linear layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoth_core import onednn


class Products(nn.Module):
    """Linear layers' products, those of one input as a single one, with weights kept in the layout that suits the CPU.

    The copies last until the model trains, or until a weight is another tensor or has been written to; writing through
    ``.data``, as training in half precision does, goes unseen. They take as much memory as the weights. Where oneDNN
    does not multiply (other devices and number formats, gradients), the layers' own weights are used.
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[tuple[nn.Linear, ...], tuple[Any, Tensor, Tensor | None]] = {}

    def __deepcopy__(self, memo: Any) -> "Products":
        return Products()

    def __reduce__(self) -> Any:
        return Products, ()

    def train(self, mode: bool = True) -> "Products":
        """The module's; the copies are forgotten, but not from one evaluation to the next."""
        if mode or self.training:
            self._copies.clear()
        return super().train(mode)

    def takes(self, like: Tensor, *layers: nn.Linear) -> bool:
        """Whether oneDNN multiplies inputs like this one with the layers' weights."""
        return not torch.is_grad_enabled() and all(onednn.takes(like, layer.weight) for layer in layers)

    def bind(self, like: Tensor, *layers: nn.Linear, relu: bool = False) -> Callable[[Tensor], Tensor]:
        """The function from x (..., I) to the layers' outputs, side by side in the last axis, and then ReLU if asked.

        It is for inputs of ``like``'s device and dtype, for weights as they are now, and without gradients if it was
        made without.
        """
        if self.takes(like, *layers):
            weight, bias = self._weights(layers)
            return partial(onednn.product, weight=weight, bias=bias, activation="relu" if relu else "none")
        return partial(_by_torch, layers=layers, relu=relu)

    def forward(self, x: Tensor, *layers: nn.Linear, relu: bool = False) -> Tensor:
        """The layers' outputs of x (..., I), side by side in the last axis, and then ReLU if asked."""
        return self.bind(x, *layers, relu=relu)(x)

    def _weights(self, layers: tuple[nn.Linear, ...]) -> tuple[Tensor, Tensor | None]:
        tensors = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
        state = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        found = self._copies.get(layers)
        if found is None or found[0] != state:
            weight = torch.cat([layer.weight.detach() for layer in layers])
            biases: list[Tensor] = [
                weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
            ]
            bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases)
            found = self._copies[layers] = (state, onednn.packed(weight), bias)
        return found[1], found[2]


def _by_torch(x: Tensor, layers: tuple[nn.Linear, ...], relu: bool) -> Tensor:
    outputs = [F.linear(x, layer.weight, layer.bias) for layer in layers]
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    return F.relu_(y) if relu else y
