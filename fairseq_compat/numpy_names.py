"""Names that fairseq takes from NumPy and that NumPy 2 no longer has."""

import types

import numpy as np


def install() -> None:
    """Give NumPy 2 its `compat.long` back.

    fairseq uses it where a language model reads sentence by sentence (--sample-break-mode eos) and where pairs are
    filtered by length; without it they end in an AttributeError.
    """
    if not hasattr(np, "compat"):
        np.compat = types.SimpleNamespace(long=int)  # type: ignore[attr-defined]
