"""Loading of pre-trained embeddings from text files."""

from typing import Any

import torch
from torch import Tensor

from thoth_core.errors import OptionError


def load_embeddings(path: str, weight: Tensor, dictionary: Any) -> int:
    """Fill rows of ``weight`` (V, dim) from a text file of 'token v1 ... v_dim' lines; return the number of rows.

    A first line 'count dim' (word2vec's, fairseq's) is optional. Tokens the dictionary lacks are skipped.

    Raises:
        OptionError: the file cannot be read, has a line of another dimension, or has no token of the dictionary.
    """
    dim = weight.size(1)
    filled = 0
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                token, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != dim:
                    raise OptionError(f"{path}:{number}: {len(values)} values, but the embedding dimension is {dim}")
                index = dictionary.index(token)
                if index == dictionary.pad() or (index == dictionary.unk() and token != dictionary[index]):
                    continue  # the vector of padding stays zero
                try:
                    vector = torch.tensor([float(value) for value in values])
                except ValueError as error:
                    raise OptionError(f"{path}:{number}: {error}; a line must be a token and {dim} numbers") from None
                if not vector.isfinite().all():
                    raise OptionError(f"{path}:{number}: the vector of {token!r} is not finite")
                weight[index] = vector
                filled += 1
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read the embeddings {path}: {error}; a trained model needs none with --task pervasive_translation"
        ) from error
    if not filled:
        raise OptionError(f"{path} holds no token of the dictionary: was it made with the same sub-word model?")
    return filled
