"""Which of PyTorch's attention kernels a training on the CPU uses."""

from typing import Any

import torch


def prefer_products_for_short_rows(cfg: Any) -> None:
    """In bf16 on the CPU, compute attention over short rows by two matrix products and a softmax.

    Measured with one thread of a CPU with AVX-512 and PyTorch 2.13, forward and backward: the fused kernel takes 7
    times as long at 12 positions (its backward pass is a quarter of a small Transformer's training step), 1.8 times at
    64, and 0.7 times at 256. Language models have rows of that length and keep it. In float32 it is at least as fast.
    """
    if cfg.common.bf16 and getattr(cfg.task, "tokens_per_sample", None) is None:
        torch.backends.cuda.enable_flash_sdp(False)  # in spite of its name, this switch also applies to the CPU
