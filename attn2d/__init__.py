"""Pervasive Attention as a fairseq plugin: ``fairseq-train --user-dir attn2d --arch pervasive ...``.

Elbayad, Besacier, Verbeek: *Pervasive Attention: 2D Convolutional Neural Networks for Sequence-to-Sequence
Prediction*, CoNLL 2018 (arXiv 1808.03867). A 2-D convolutional network over the grid of source and target
positions takes the place of encoder, decoder and attention.
"""

import fairseq_compat

fairseq_compat.install()

from attn2d.model import PervasiveModel  # noqa: E402  (registration needs the mended host)
from attn2d.task import PervasiveTranslationTask  # noqa: E402

__all__ = ["PervasiveModel", "PervasiveTranslationTask"]
