"""Depth-Adaptive Transformer, a fairseq plugin: ``fairseq-train --user-dir depth_adaptive ...``.

Elbayad, Gu, Grave, Auli: *Depth-Adaptive Transformer*, ICLR 2020 (arXiv 1910.10073). A decoder that may stop after any
block, token by token.
"""

import fairseq_compat

fairseq_compat.install()

from depth_adaptive.criterion import DepthAdaptiveCriterion  # noqa: E402  (registration needs the mended host)
from depth_adaptive.model import DepthAdaptiveTransformerModel  # noqa: E402

__all__ = ["DepthAdaptiveCriterion", "DepthAdaptiveTransformerModel"]
