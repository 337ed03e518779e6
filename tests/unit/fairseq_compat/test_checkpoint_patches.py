"""What a checkpoint holds instead of objects that PyTorch does not load safely."""

from argparse import Namespace
from collections import OrderedDict

import numpy
import torch

from fairseq_compat.checkpoint_patches import plain


def test_objects_become_plain_values() -> None:
    weight = torch.ones(2)
    value = {
        "model": Namespace(_name="x", inner=Namespace(betas=(0.9, numpy.float64(0.98)))),
        "metrics": OrderedDict(valid=[(0, {"sum": numpy.array([3, 2]), "n": numpy.int64(2)})]),
        "weight": weight,
        "other": {1, 2},
    }
    result = plain(value)
    assert result["model"] == {"_name": "x", "inner": {"betas": (0.9, 0.98)}}
    assert result["metrics"] == OrderedDict(valid=[(0, {"sum": [3, 2], "n": 2})])
    assert type(result["metrics"]) is OrderedDict
    assert type(result["metrics"]["valid"][0][1]["n"]) is int
    assert result["weight"] is weight
    assert result["other"] == {1, 2}
