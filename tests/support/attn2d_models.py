"""Small Pervasive Attention models and batches for the tests."""

from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from torch import Tensor

from attn2d.config import PervasiveConfig
from attn2d.model import PervasiveModel

# Largest difference allowed between two ways to the same logits (of order 1).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-1}


def dictionary(symbols: int = 60) -> Dictionary:
    """A dictionary of w0, w1, ..."""
    result = Dictionary()
    for index in range(symbols):
        result.add_symbol(f"w{index}")
    return result


def small_model(dtype: torch.dtype = torch.float64, *, seed: int = 1, **options: object) -> PervasiveModel:
    """A three-layer model in evaluation mode, its parameters well away from their initial zeros and ones."""
    torch.manual_seed(seed)
    words = dictionary()
    settings: dict = dict(
        encoder_embed_dim=16,
        decoder_embed_dim=12,
        convnet_channels=20,
        convnet_layers=3,
        convnet_kernel_size=5,
        resnet_ffn_dim=24,
        densenet_growth=8,
        max_source_positions=64,
        max_target_positions=64,
    )
    settings.update(options)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    model = PervasiveModel.build_model(PervasiveConfig(**settings), task)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    for name, buffer in model.named_buffers():  # running statistics as after some training
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model.to(dtype).eval()


def random_tokens(lengths: list[int], *, pad: int, left: bool, seed: int = 3) -> Tensor:
    """Token ids (len(lengths), max(lengths)), padded left or right; the tokens depend on the sentence alone."""
    width = max(lengths)
    rows = []
    for index, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed + index)
        tokens = torch.randint(4, 60, (length,), generator=generator)
        padding = torch.full((width - length,), pad)
        rows.append(torch.cat((padding, tokens) if left else (tokens, padding)))
    return torch.stack(rows)
