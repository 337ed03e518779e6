"""Two models and several threads in one process never meet: backends, forward passes, recorded usage."""

import contextvars
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from memory_layers import ProductKeyMemory, ValueTable, ops
from tests.unit.memory_layers.test_model import dictionary, logits, sentences, translator

pytestmark = pytest.mark.slow  # several threads translate

THREADS = 8


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """The results of work(0), ..., work(THREADS - 1), each in a thread of its own, all started together."""
    results: list[Any] = [None] * THREADS
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


# ---- backends ----------------------------------------------------------------------------------------------


def test_two_models_keep_their_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model of a process does not change the first one's."""
    ops.check_available("cpu")
    kernels = translator(memory_backend="cpu").eval()
    plain = translator(memory_backend="torch").eval()
    assert kernels.decoder.layers[1].memory.table.backend == "cpu"
    assert plain.decoder.layers[1].memory.table.backend == "torch"
    used: list[str] = []
    runs_plainly = ops._runs_plainly

    def noted(name: str, backend: str, *tensors: Tensor, **sizes: int) -> bool:
        used.append(backend)
        return runs_plainly(name, backend, *tensors, **sizes)

    monkeypatch.setattr(ops, "_runs_plainly", noted)
    for model, backend in ((kernels, "cpu"), (plain, "torch"), (kernels, "cpu")):
        logits(model, sentences(7), sentences(4))
        assert used == [backend]
        used.clear()


def test_a_memory_has_the_backend_of_its_table() -> None:
    sizes = dict(input_dim=6, n_keys=4, key_dim=4, k=2)
    table = ValueTable(16, 6, backend="torch")
    assert ProductKeyMemory(**sizes, table=table).table.backend == "torch"
    assert ProductKeyMemory(**sizes, backend="torch").table.backend == "torch"
    assert ProductKeyMemory(**sizes).table.backend == "auto"
    with pytest.raises(ValueError, match="the backend must be that of the table, 'torch', given 'auto'"):
        ProductKeyMemory(**sizes, table=table, backend="auto")
    with pytest.raises(ValueError, match="must be one of auto, cpu, cuda, torch, given 'gpu'"):
        ValueTable(16, 6, backend="gpu")


# ---- threads -----------------------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, object]] = {
    "encoder and decoder": dict(memory_encoder_layers="1,3", memory_decoder_layers="1,2,3", memory_join=True),
    "replaced": dict(memory_encoder_layers="2", memory_decoder_layers="2"),
    "cross self attention": dict(cross_self_attention=True, no_cross_attention=True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_threads_translate_with_one_model(options: dict[str, object]) -> None:
    """Translations, scores and slot usage are those of one thread, bit for bit."""
    model = translator(**options).eval()
    batches = [sentences(*lengths, seed=seed) for seed, lengths in enumerate([(7, 3, 5), (9,), (4, 6), (11, 2)] * 2)]

    def translate(number: int) -> list[Any]:
        torch.set_num_threads(1)
        generator = SequenceGenerator([model], dictionary(), beam_size=3, max_len_b=15, normalize_scores=False)
        results: list[Any] = []
        with model.recorded_usage() as usage:
            for repetition in range(3):
                source = batches[(number + repetition) % len(batches)]
                lengths = source.ne(1).sum(dim=1)
                sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}, "id": torch.arange(len(source))}
                for hypotheses in generator.generate([model], sample):
                    results += [(best["tokens"].tolist(), best["score"].item()) for best in hypotheses]
        return [results, {name: record.weights for name, record in usage.items()}]

    alone = [translate(number) for number in range(THREADS)]
    together = in_threads(translate)
    for (results, usage), (same_results, same_usage) in zip(alone, together, strict=True):
        assert results == same_results
        assert usage.keys() == same_usage.keys()
        for name, weights in usage.items():
            assert weights.sum() > 0
            assert torch.equal(weights, same_usage[name]), name


def test_usage_is_recorded_in_the_thread_that_asks() -> None:
    model = translator().eval()
    source, target = sentences(7), sentences(4)
    with model.recorded_usage() as usage:
        other = threading.Thread(target=logits, args=(model, source, target))
        other.start()
        other.join()
        assert usage["d2"].weights.sum() == 0
        contextvars.copy_context().run(logits, model, source, target)  # a caller may hand its context on
        assert usage["d2"].weights.sum() > 0


def test_batches_without_sentences_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq validates an old batch again in a process that has none left, and has the Trainer ignore the result."""
    from fairseq.logging import metrics

    from memory_layers import trainer_patches

    model = translator().eval()
    source, target = sentences(7, 3), sentences(4, 6, seed=1)

    class Trainer:
        def valid_step(self, sample: Any) -> None:
            logits(model, source, target)

        def _build_optimizer(self) -> None: ...

        def zero_grad(self) -> None: ...

        def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> None: ...

        always_call_state_dict_during_save_checkpoint = property(lambda self: False)

    trainer_patches.install(Trainer)
    shares = []
    for samples in ([SimpleNamespace()], [SimpleNamespace(), None], [None, SimpleNamespace()]):
        with metrics.aggregate(new_root=True) as validation, torch.no_grad():
            for sample in samples:
                Trainer().valid_step(sample)
            usage = vars(validation)["memory_usage"]["d2"]
        shares.append(usage.weights.clone())
    assert torch.equal(shares[0], shares[1])
    assert torch.equal(shares[0], shares[2])
    assert shares[0].sum() > 0
