"""Linear layers with packed weights: products, changes of the weights, and layers that are more than their weight."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from depth_adaptive import halting
from depth_adaptive.packed_linear import PackedLinears, is_plain_linear
from tests.support.depth_models import LAYERS, SOURCE, beam, built, encoded, run
from thoth_core import onednn
from thoth_core.errors import UserError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, False)], ids=str)
@torch.no_grad()
def test_linears_side_by_side(dtype: torch.dtype, biases: tuple[bool, bool]) -> None:
    torch.manual_seed(1)
    first, second = (nn.Linear(24, n, bias=bias).to(dtype) for n, bias in zip((10, 33), biases, strict=True))
    linears = PackedLinears()
    for rows in (1, 5, 200, 3):
        x = torch.randn(rows, 24).to(dtype)
        doubles = [copy.deepcopy(layer).double() for layer in (first, second)]
        expected = torch.cat([layer(x.double()) for layer in doubles], -1)
        for relu in (False, True):
            actual = linears(x, first, second, relu=relu).double()
            tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
            torch.testing.assert_close(actual, expected.relu() if relu else expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_copies_follow_their_weights() -> None:
    layer, linears = nn.Linear(8, 8), PackedLinears()
    x = torch.randn(3, 8)

    def check() -> None:
        torch.testing.assert_close(linears(x, layer), layer(x))

    check()
    layer.weight.mul_(2)
    check()
    layer.bias.add_(1)
    check()
    layer.load_state_dict(nn.Linear(8, 8).state_dict())
    check()
    layer.weight.data = torch.randn(8, 8)
    check()
    layer.weight.data.mul_(2)  # as fairseq does after an update in half precision: unseen
    linears.train()
    check()
    layer = nn.Linear(8, 8)
    check()


def test_gradients_take_no_copies() -> None:
    layer, linears = nn.Linear(8, 8), PackedLinears()
    linears(torch.randn(3, 8), layer, relu=True).sum().backward()
    assert layer.weight.grad is not None
    assert not linears._copies


@torch.no_grad()
def test_copies_are_not_copied() -> None:
    layer, linears = nn.Linear(8, 8), PackedLinears()
    linears(torch.randn(3, 8), layer)
    assert linears._copies
    assert not copy.deepcopy(linears)._copies
    assert not pickle.loads(pickle.dumps(linears))._copies


@torch.no_grad()
def test_another_layout_of_the_same_weight_is_packed_again() -> None:
    layer, linears, x = nn.Linear(8, 8), PackedLinears(), torch.randn(3, 8)
    linears(x, layer)
    layer.weight.data = layer.weight.data.t()
    torch.testing.assert_close(linears(x, layer), layer(x))


class Adapter(nn.Linear):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        torch.manual_seed(5)
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)
        self.to(layer.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


def adapted(layer: nn.Linear) -> nn.Module:
    return Adapter(layer)


def hooked(layer: nn.Linear) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: output + 0.5)
    return layer


def prehooked(layer: nn.Linear) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.5,))
    return layer


def pruned(layer: nn.Linear) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


def reparametrized(layer: nn.Linear) -> nn.Module:
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.5)
    return layer


def normalised(layer: nn.Linear) -> nn.Module:
    torch.nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.mul_(1.5)
    return layer


def replaced_forward(layer: nn.Linear) -> nn.Module:
    plain = layer.forward
    layer.forward = lambda x: plain(x) + 0.5  # type: ignore[method-assign]
    return layer


WRAPPERS = [adapted, hooked, prehooked, pruned, reparametrized, normalised, replaced_forward]
wrappers = pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)


@wrappers
@torch.no_grad()
def test_layers_that_are_more_than_their_weight_are_called(wrap: Callable[[nn.Linear], nn.Module]) -> None:
    x, first, second = torch.randn(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)
    linears = PackedLinears()
    before = linears(x, first, second)
    wrapped = wrap(first)
    assert not is_plain_linear(wrapped)
    expected = torch.cat([wrapped(x), second(x)], -1)
    torch.testing.assert_close(linears(x, wrapped, second), expected)
    assert (expected - before).abs().max() > 0.1


def wrap_linears(model: Any, wrap: Callable[[nn.Linear], nn.Module]) -> None:
    """Wrap each linear layer of the blocks of encoder and decoder, and the output projection."""
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        for owner in (layer, layer.self_attn, getattr(layer, "encoder_attn", None)):
            for name, child in [] if owner is None else list(owner.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(owner, name, wrap(child))
    model.decoder.output_projection = wrap(model.decoder.output_projection)


@wrappers
def test_encoding_and_decoding_call_wrapped_layers(wrap: Callable[[nn.Linear], nn.Module]) -> None:
    """In float32, where oneDNN multiplies: as fairseq computes the same model, before and after wrapping."""
    plain, model = built().float(), built().float()
    beam(model, SOURCE)  # packs weights
    for one in (plain, model):
        wrap_linears(one, wrap)
    plain.train()  # without dropout; fairseq's own path
    real = SOURCE.ne(1)
    expected = plain.encoder(SOURCE, real.sum(1))["encoder_out"][0].transpose(0, 1)[real]
    torch.testing.assert_close(encoded(model), expected.detach(), rtol=0, atol=2e-5)
    plain.eval()
    by_fairseq = beam(plain, SOURCE)
    assert by_fairseq != beam(built().float(), SOURCE)
    model.decoder.policy = halting.FixedPolicy(exits=LAYERS, exit=LAYERS)
    for ours, theirs in zip(beam(model, SOURCE), by_fairseq, strict=True):
        assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-4)


@pytest.mark.parametrize("policy", [None, halting.FixedPolicy(exits=LAYERS, exit=LAYERS)], ids=["full", "fixed"])
def test_a_written_weight_changes_the_next_translation(policy: halting.Policy | None) -> None:
    model = built().float()
    model.decoder.policy = policy
    before = beam(model, SOURCE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    fresh = built().float()
    fresh.load_state_dict(model.state_dict())
    fresh.decoder.policy = policy
    assert beam(model, SOURCE) == beam(fresh, SOURCE) != before


@pytest.mark.parametrize("part", ["self_attn", "encoder_attn", ""])
def test_steps_refuse_blocks_whose_hooks_they_would_pass_over(part: str) -> None:
    model = built()
    layer = model.decoder.layers[1]
    calls = []
    (getattr(layer, part) if part else layer).register_forward_hook(lambda *_: calls.append(1))
    beam(model, SOURCE)
    assert calls
    model.decoder.policy = halting.FixedPolicy(exits=LAYERS, exit=2)
    run(model)
    with pytest.raises(UserError, match="has forward hooks, which decoding with an exit policy does not run"):
        beam(model, SOURCE)


def test_hooks_of_the_encoders_attention_run() -> None:
    model = built().float()
    expected = encoded(model)
    model.encoder.layers[0].self_attn.register_forward_hook(lambda module, inputs, output: (2 * output[0], None))
    assert (encoded(model) - expected).abs().max() > 0.01
    assert onednn.AVAILABLE
