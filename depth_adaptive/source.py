"""What decoding reads of the encoder's output.

Axes: S source, B sentences, E dimension of the encoder.
"""

import torch
from torch import Tensor


class Source:
    """The encoder's output of a batch of sentences, shared by all rows of a search.

    Attributes:
        encoder_out: (S, B, E).
        places: (B, S) int64, where each position of a sentence lies in ``encoder_out.flatten(0, 1)``; -1 at padding.
        mean: (B, E), see :func:`mean_state`.
    """

    def __init__(self, encoder_out: Tensor, padding: Tensor | None) -> None:
        """``encoder_out`` (S, B, E); ``padding`` (B, S) is True at padding, None: there is none."""
        length, sentences, _ = encoder_out.shape
        places = torch.arange(length * sentences, device=encoder_out.device).view(length, sentences).t().contiguous()
        self.encoder_out = encoder_out
        self.places = places if padding is None else places.masked_fill_(padding, -1)
        self.mean = mean_state(encoder_out, padding)


def mean_state(encoder_out: Tensor, padding: Tensor | None) -> Tensor:
    """The mean (B, E) of the encoder's output (S, B, E) over the positions that are not padding (B, S).

    It is computed in float32 or better: bfloat16 cannot count to 257, and the mean of a sentence must not depend on
    the padding beside it.
    """
    x = encoder_out.to(torch.promote_types(encoder_out.dtype, torch.float32))
    if padding is None:
        padding = torch.zeros(x.size(1), x.size(0), dtype=torch.bool, device=x.device)
    total = x.masked_fill(padding.t().unsqueeze(-1), 0).sum(0)
    return (total / (~padding).sum(1, keepdim=True)).to(encoder_out.dtype)
