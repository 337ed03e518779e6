"""No state is shared: models keep their backends, and threads that translate with one model do not meet."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from attn2d.backend import Backend
from attn2d.model import PervasiveModel
from tests.support.attn2d_models import random_tokens, small_model

pytestmark = pytest.mark.slow  # eight threads translate

PAD = 1
THREADS = 8


def translate(model: PervasiveModel, source: Tensor) -> list[list[tuple[list[int], float]]]:
    """Beam-5 translations by a generator of its own: tokens and score of every hypothesis."""
    generator = SequenceGenerator([model], model.decoder.dictionary, beam_size=5, max_len_a=0, max_len_b=16)
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}}
    hypotheses = generator.generate([model], sample)
    return [[(one["tokens"].tolist(), float(one["score"])) for one in sentence] for sentence in hypotheses]


@pytest.mark.parametrize("backend", ("native", "torch"))
@pytest.mark.parametrize("convnet", ("resnet", "densenet"))
def test_eight_threads_translate_as_one(convnet: str, backend: str) -> None:
    """Batches of other shapes in every thread, several after one another, begun at the same moment."""
    model = small_model(torch.float32, convnet=convnet, grid_backend=backend)
    batches = [
        [
            random_tokens([3 + (thread + turn) % 5, 7, 1 + thread], pad=PAD, left=True, seed=10 * thread + turn)
            for turn in range(4)
        ]
        for thread in range(THREADS)
    ]
    expected = [[translate(model, batch) for batch in turns] for turns in batches]
    barrier = Barrier(THREADS)

    def work(turns: list[Tensor]) -> list[list[list[tuple[list[int], float]]]]:
        barrier.wait()
        return [translate(model, batch) for batch in turns]

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, batches)) == expected


def test_two_models_keep_their_backends() -> None:
    """The backends' dropout masks differ, so training shows which one computes."""
    source, target = random_tokens([5, 8], pad=PAD, left=True), random_tokens([7, 7], pad=PAD, left=False)

    def logits(model: PervasiveModel) -> Tensor:
        torch.manual_seed(3)
        return model.train()(source, None, target)[0]

    native = small_model(grid_backend="native")
    alone = logits(native)
    other = small_model(grid_backend="torch")
    assert torch.equal(logits(native), alone)
    assert not torch.equal(logits(other), alone)
    assert torch.equal(logits(native), alone)


@pytest.mark.parametrize("convnet", ("resnet", "densenet"))
@pytest.mark.parametrize("aggregator", ("gated-max", "max"))
@pytest.mark.parametrize("convnet_norm", ("layer", "batch"))
def test_every_part_of_a_model_has_its_backend(convnet: str, aggregator: str, convnet_norm: str) -> None:
    model = small_model(convnet=convnet, aggregator=aggregator, convnet_norm=convnet_norm, grid_backend="torch")
    backends = {module.backend for module in model.modules() if hasattr(module, "backend")}
    assert backends == {Backend.TORCH}
