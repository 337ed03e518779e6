"""A cut model is the plain Transformer that the original is with all tokens leaving at that exit."""

from typing import Any

import pytest
import torch
from fairseq.models.transformer import TransformerModel

from depth_adaptive import halting
from depth_adaptive.cut import cut
from tests.support.depth_models import EMBEDDED, LAYERS, arguments, built, run, task

PRE = dict(decoder_normalize_before=True)
SEPARATE = dict(exit_projections="separate")
TIED = dict(share_decoder_input_output_embed=True)


@pytest.mark.parametrize("n", [1, 3, LAYERS])
@pytest.mark.parametrize("norms", [{}, PRE], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("projections", [{}, SEPARATE], ids=["shared", "separate"])
@pytest.mark.parametrize("embeddings", [{}, TIED, EMBEDDED], ids=["untied", "tied", "all tied"])
def test_logits(n: int, norms: Any, projections: Any, embeddings: Any) -> None:
    options = {**norms, **projections, **embeddings, "halting": "geometric"}
    model = built(**options)
    model.decoder.policy = halting.FixedPolicy(exits=LAYERS, exit=n)
    weights, args = cut(model.state_dict(), arguments(**options), n)
    plain = TransformerModel.build_model(args, task()).double().eval()
    plain.load_state_dict(weights, strict=True)
    assert len(plain.decoder.layers) == n
    assert torch.allclose(run(plain)[0], run(model)[0], rtol=0, atol=1e-10)
