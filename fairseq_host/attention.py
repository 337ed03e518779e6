"""Which of PyTorch's attention kernels a training on the CPU uses."""

from typing import Any

import torch


def prefer_products_for_short_rows(cfg: Any) -> None:
    """In bf16 on the CPU, let attention over short rows be two matrix products and a softmax.

    The fused kernel's backward pass splits by blocks of 32 to 512 positions however few there are: with the 10 to 30
    sub-words of a sentence it took seven times as long, a quarter of a training step (PyTorch 2.13). From about 200
    positions on the fused one is faster: language models, whose rows are that long, keep it.
    """
    if cfg.common.bf16 and getattr(cfg.task, "tokens_per_sample", None) is None:
        torch.backends.cuda.enable_flash_sdp(False)  # it holds for the CPU too, whatever the name says
