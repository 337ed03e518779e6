"""Invariants of the Pervasive Attention model: causality, padding, batches, incremental decoding, alignments."""

import itertools

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from attn2d import backend as backends
from attn2d.aggregators import AGGREGATORS
from attn2d.convnet import CONVNETS, NORMS, GridBatchNorm
from attn2d.model import PervasiveModel
from attn2d.reference import PlainPervasive
from tests.support.attn2d_models import TOLERANCE, random_tokens, small_model
from thoth_core.errors import OptionError

DTYPES = (torch.float32, torch.float64)
EVERY = [
    dict(convnet=convnet, aggregator=aggregator, convnet_norm=norm)
    for convnet, aggregator, norm in itertools.product(CONVNETS, AGGREGATORS, NORMS)
]
PAD = 1

every_model = pytest.mark.parametrize("options", EVERY, ids=lambda options: "-".join(options.values()))
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))
both_backends = pytest.mark.parametrize("backend", ("native", "torch"))


def close(a: Tensor, b: Tensor) -> None:
    """a equals b up to the dtype's tolerance."""
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    assert (a - b).abs().max() <= TOLERANCE[a.dtype]


@every_model
@both_dtypes
def test_logits_do_not_depend_on_the_batch(options: dict, dtype: torch.dtype) -> None:
    model = small_model(dtype, **options)
    source_lengths, target_lengths = [4, 9, 1, 6], [7, 3, 5, 1]
    target = random_tokens(target_lengths, pad=PAD, left=False, seed=50)
    for left in (True, False):
        together, _ = model(random_tokens(source_lengths, pad=PAD, left=left), None, target)
        for index in range(4):
            source = random_tokens(source_lengths, pad=PAD, left=left)[index]
            alone, _ = model(source[source != PAD][None], None, target[index : index + 1, : target_lengths[index]])
            close(together[index, : target_lengths[index]], alone[0])


@every_model
@both_dtypes
def test_rows_do_not_see_later_rows(options: dict, dtype: torch.dtype) -> None:
    model = small_model(dtype, **options)
    source = random_tokens([5, 8], pad=PAD, left=True)
    target = random_tokens([7, 7], pad=PAD, left=False)
    before, _ = model(source, None, target)
    for row in range(1, 7):
        changed = target.clone()
        changed[:, row:] = torch.randint(4, 60, changed[:, row:].shape)
        after, _ = model(source, None, changed)
        assert torch.equal(before[:, :row], after[:, :row])
        assert not torch.equal(before[:, row], after[:, row])


@every_model
@both_dtypes
def test_left_padded_targets(options: dict, dtype: torch.dtype) -> None:
    model = small_model(dtype, positions="none", **options)
    source = random_tokens([5, 8], pad=PAD, left=True)
    right, _ = model(source, None, random_tokens([3, 6], pad=PAD, left=False))
    left, _ = model(source, None, random_tokens([3, 6], pad=PAD, left=True))
    close(left[0, 3:], right[0, :3])
    close(left[1], right[1])


@every_model
@both_dtypes
def test_incremental_decoding_equals_full(options: dict, dtype: torch.dtype) -> None:
    """With the beam reordered and shrunk at every step, as when sentences finish."""
    model = small_model(dtype, convnet_dilation=2, **options)
    source = random_tokens([6, 9, 2, 9, 4, 7], pad=PAD, left=True)
    target = random_tokens([8] * 6, pad=PAD, left=False, seed=70)
    encoded = model.encoder(source)
    state: dict = {}
    rows = torch.arange(6)  # which sentence each hypothesis belongs to
    history = target[:, :1]
    for step in range(8):
        with torch.no_grad():  # as decoding does: oneDNN's packed weights are for this
            logits, _ = model.decoder(history, encoded, state)
        assert logits.shape[1] == 1
        full, _ = model(source[rows], None, history)
        close(logits[:, 0], full[:, -1])
        order = torch.randint(0, len(rows), (len(rows) - (step % 3 == 2),))  # repeats some, drops others
        rows, history = rows[order], history[order]
        encoded = model.encoder.reorder_encoder_out(encoded, order)
        model.decoder.reorder_incremental_state(state, order)
        history = torch.cat((history, target[rows, step : step + 1]), dim=1)


@every_model
def test_incremental_decoding_has_the_gradients_of_the_whole(options: dict) -> None:
    model = small_model(**options)
    source, target = random_tokens([6, 9], pad=PAD, left=True), random_tokens([5, 5], pad=PAD, left=False)
    gradients = []
    for incremental in (False, True):
        model.zero_grad()
        encoded, state = model.encoder(source), {}
        if incremental:
            steps = [model.decoder(target[:, : step + 1], encoded, state)[0] for step in range(5)]
            logits = torch.cat(steps, dim=1)
        else:
            logits, _ = model.decoder(target, encoded)
        logits.logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for whole, rows in zip(*gradients, strict=True):
        close(rows, whole)


@every_model
def test_alignments_are_shares_of_real_source_tokens(options: dict) -> None:
    model = small_model(**options)
    source = random_tokens([5, 8], pad=PAD, left=True)
    _, extra = model(source, None, random_tokens([7, 7], pad=PAD, left=False))
    (alignments,) = extra["attn"]
    assert alignments.shape == (2, 7, 8)
    assert torch.allclose(alignments.sum(dim=-1), torch.ones(2, 7, dtype=alignments.dtype))
    assert (alignments[source.eq(PAD)[:, None].expand_as(alignments)] == 0).all()
    alignments.add_(1)  # as fairseq does for an ensemble: an error if rows shared their memory


def test_max_alignments_count_the_winning_channels() -> None:
    """Against a loop over the columns."""
    model = small_model(aggregator="max")
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    _, shares = model.decoder.aggregator(x, None, True)
    for batch, row, column in itertools.product(range(2), range(3), range(6)):
        won = sum(int(x[batch, row, :, channel].argmax()) == column for channel in range(10))
        assert shares[batch, row, column] == pytest.approx(won / 10)


def translations(model: PervasiveModel, source: Tensor, dtype: torch.dtype) -> list[list[tuple[list[int], float]]]:
    """Beam-5 translations of every sentence: tokens and score of all five hypotheses."""
    generator = SequenceGenerator([model], model.decoder.dictionary, beam_size=5, max_len_a=0, max_len_b=16)
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}}
    batch = generator.generate([model], sample)
    return [[(h["tokens"].tolist(), float(h["score"])) for h in hypotheses] for hypotheses in batch]


@every_model
@both_dtypes
def test_beam_search_does_not_depend_on_the_batch(options: dict, dtype: torch.dtype) -> None:
    model = small_model(dtype, **options)
    lengths = [3, 10, 6, 1]
    together = translations(model, random_tokens(lengths, pad=PAD, left=True), dtype)
    for index, length in enumerate(lengths):
        source = random_tokens(lengths, pad=PAD, left=False)[index : index + 1, :length]
        alone = translations(model, source, dtype)[0]
        assert [tokens for tokens, _ in alone] == [tokens for tokens, _ in together[index]]
        for (_, a), (_, b) in zip(alone, together[index], strict=True):
            assert a == pytest.approx(b, abs=TOLERANCE[dtype])


@both_backends
@pytest.mark.parametrize("channels", (0, 20))
def test_model_equals_the_plain_formulation(backend: str, channels: int) -> None:
    """Values, and gradients of every parameter, where there is no padding."""
    model = small_model(convnet_channels=channels, convnet_dilation=2, grid_backend=backend)
    plain = PlainPervasive(model).eval()
    source, target = random_tokens([9, 9], pad=PAD, left=True), random_tokens([7, 7], pad=PAD, left=False)
    ours, theirs = model(source, None, target)[0], plain(source, target)
    close(ours, theirs)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    decoder = model.decoder
    pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = [
        (model.encoder.embedder, plain.source),
        (decoder.embedder, plain.target),
        (decoder.convnet.norm, plain.norm),
        (decoder.aggregator.gate, plain.gate),
        (decoder.project, plain.project),
    ]
    for layer, twin in zip(decoder.convnet.layers, plain.layers, strict=True):
        pairs += [(getattr(layer, part), getattr(twin, part)) for part in ("conv_norm", "ffn_norm")]
        pairs += [(getattr(layer, part), getattr(twin, part)) for part in ("expand", "contract")]
        height = layer.conv.conv.weight.size(2)
        close(layer.conv.conv.weight.grad, twin.conv.weight.grad[:, :, :height])
    compared = len(decoder.convnet.layers)
    for one, other in pairs:
        for (name, parameter), (twin_name, twin_parameter) in zip(
            one.named_parameters(), other.named_parameters(), strict=True
        ):
            assert name == twin_name
            close(parameter.grad, twin_parameter.grad)
            compared += 1
    if channels:
        source_part, target_part = decoder.grid.reduce_source, decoder.grid.reduce_target
        weight = torch.cat((source_part.weight.grad, target_part.weight.grad), dim=1)
        close(weight, plain.reduce.weight.grad[:, :, 0, 0])
        close(source_part.bias.grad, plain.reduce.bias.grad)
        compared += 3
    assert compared == len(list(model.parameters()))


@pytest.mark.parametrize("options", [dict(convnet=convnet) for convnet in CONVNETS], ids=list(CONVNETS))
def test_gradient_checkpointing_changes_nothing(options: dict) -> None:
    """Same loss and gradients, dropout masks included."""
    gradients = []
    for checkpointing in (False, True):
        model = small_model(convnet_checkpointing=checkpointing, convnet_dropout=0.3, **options).train()
        torch.manual_seed(5)
        source, target = random_tokens([4, 9], pad=PAD, left=True), random_tokens([7, 5], pad=PAD, left=False)
        model(source, None, target)[0].logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("convnet", CONVNETS)
def test_states_can_be_averaged(convnet: str) -> None:
    """As --store-ema does, which multiplies all of them; those of an earlier version, with a count, load."""
    model = small_model(convnet=convnet, convnet_norm="batch")
    state = model.state_dict()
    assert any(name.endswith("running_mean") for name in state)
    assert all(value.is_floating_point() for value in state.values())
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    model.load_state_dict({**state, **{f"{name}num_batches_tracked": torch.tensor(7) for name in norms}})
    assert model.state_dict().keys() == state.keys()


def test_what_decoding_does_not_have_is_refused() -> None:
    with pytest.raises(OptionError, match="--retain-dropout is not supported by Pervasive Attention"):
        small_model().make_generation_fast_(retain_dropout=True, retain_dropout_modules=None)
    small_model().make_generation_fast_(need_attn="hard")


def test_a_backend_that_does_not_take_the_weights_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(torch.float16, grid_backend="native").eval()
    source, target = random_tokens([4], pad=PAD, left=True), random_tokens([7], pad=PAD, left=False)
    with pytest.raises(OptionError, match=r"--grid-backend native: .*given torch\.float16 on cpu"):
        model(source, None, target)
    monkeypatch.setattr(backends, "BUILT", False)
    with pytest.raises(OptionError, match=r"--grid-backend native: .*not built: install the package with a C"):
        small_model(grid_backend="native")


@pytest.mark.parametrize("convnet", CONVNETS)
def test_recomputing_is_no_second_step_of_batch_norm(convnet: str) -> None:
    """The running statistics after one update are the same with gradient checkpointing."""
    statistics = []
    for checkpointing in (False, True):
        model = small_model(convnet=convnet, convnet_norm="batch", convnet_checkpointing=checkpointing).train()
        torch.manual_seed(5)
        source, target = random_tokens([4, 9], pad=PAD, left=True), random_tokens([7, 5], pad=PAD, left=False)
        model(source, None, target)[0].logsumexp(-1).sum().backward()
        statistics.append([buffer for name, buffer in model.named_buffers() if "running" in name or "tracked" in name])
    assert statistics[0]
    for plain, recomputed in zip(*statistics, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@every_model
def test_half_precision_stays_finite(options: dict, dtype: torch.dtype) -> None:
    model = small_model(torch.float32, **options).to(dtype).train()
    source, target = random_tokens([4, 9], pad=PAD, left=True), random_tokens([7, 5], pad=PAD, left=False)
    logits, _ = model(source, None, target)
    logits.float().logsumexp(-1).sum().backward()
    assert torch.isfinite(logits).all()
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("convnet", CONVNETS)
@pytest.mark.parametrize("extra", ((5, 0), (0, 5)), ids=("source", "target"))
def test_batch_norm_ignores_padding(convnet: str, extra: tuple[int, int]) -> None:
    """Training statistics are those of the real cells: padding more changes neither outputs nor running statistics."""
    outputs = []
    for more_source, more_target in ((0, 0), extra):
        model = small_model(convnet=convnet, convnet_norm="batch", aggregator="max").train()
        for module in model.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
        source, target = random_tokens([4, 9], pad=PAD, left=False), random_tokens([6, 3], pad=PAD, left=False)
        source = torch.cat((source, source.new_full((2, more_source), PAD)), dim=1)
        target = torch.cat((target, target.new_full((2, more_target), PAD)), dim=1)
        logits, _ = model(source, None, target)
        real = torch.cat((logits[0, :6], logits[1, :3]))
        outputs.append([real, *(buffer for name, buffer in model.named_buffers() if "running" in name)])
    assert len(outputs[0]) > 4
    for plain, padded in zip(*outputs, strict=True):
        close(plain, padded)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_batch_norm_keeps_float32_statistics_in_half_precision(dtype: torch.dtype) -> None:
    norm = GridBatchNorm(8).to(dtype).train()
    x = 3 + 0.3 * torch.randn(4, 5, 6, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(200):
        assert norm(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(norm.running_mean, x.to(dtype).float().mean((0, 1, 2)), rtol=1e-4, atol=0)
    assert norm.double().running_mean.dtype == torch.float64


def test_batch_norm_of_a_single_cell() -> None:
    """Two empty sentences in a batch of their own end no training."""
    model = small_model(convnet="densenet", convnet_norm="batch").train()
    logits, _ = model(torch.tensor([[2]]), None, torch.tensor([[2]]))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("positions", ("none", "sinusoidal", "learned"))
def test_positions(positions: str) -> None:
    """Only with positions does the order of a one-column-wide network's source matter."""
    model = small_model(positions=positions, convnet_kernel_size=1, aggregator="max")
    source, target = random_tokens([6], pad=PAD, left=False), random_tokens([4], pad=PAD, left=False)
    logits, _ = model(source, None, target)
    flipped, _ = model(source.flip(1), None, target)
    assert torch.allclose(logits, flipped) == (positions == "none")


@pytest.mark.parametrize("ties", ("none", "decoder", "all"))
def test_ties(ties: str) -> None:
    model = small_model(tie_embeddings=ties, decoder_embed_dim=16)
    output, target, source = (
        model.decoder.output.weight,
        model.decoder.embedder.tokens.weight,
        model.encoder.embedder.tokens.weight,
    )
    assert (output is target) == (ties != "none")
    assert (source is target) == (ties == "all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(convnet_kernel_size=4), "--convnet-kernel-size must be odd, given 4"),
        (dict(convnet_layers=0), "--convnet-layers must be at least 1, given 0"),
        (dict(convnet_dilation=0), "--convnet-dilation must be at least 1, given 0"),
        (dict(convnet_dilation=10**7), "--convnet-dilation must be so small that the kernel reaches no further"),
        (dict(convnet_kernel_size=201), "--convnet-kernel-size must be so small that the kernel reaches no further"),
        (dict(max_source_positions=0), "--max-source-positions must be at least 1, given 0"),
        (dict(max_target_positions=-5), "--max-target-positions must be at least 1, given -5"),
        (dict(convnet_channels=-1), "--convnet-channels must be at least 0"),
        (dict(convnet_dropout=1.0), "--convnet-dropout must be at least 0 and less than 1, given 1.0"),
        (dict(embedding_dropout=-0.1), "--embedding-dropout must be at least 0 and less than 1"),
        (dict(convnet_groups=3), "--convnet-groups must be a divisor of the convolution's channels"),
        (dict(encoder_embed_dim=15), "--encoder-embed-dim must be even for --positions sinusoidal"),
        (dict(tie_embeddings="all"), "--encoder-embed-dim must be equal to --decoder-embed-dim"),
        (dict(encoder_embed_path="/nowhere/vectors"), "cannot read the embeddings /nowhere/vectors"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        small_model(**options)


def test_pretrained_embeddings(tmp_path) -> None:
    path = tmp_path / "vectors.txt"
    vectors = {"w3": [0.5] * 16, "w7": [-1.0] * 16, "elsewhere": [9.0] * 16, "<pad>": [9.0] * 16}
    lines = [f"{token} {' '.join(map(str, values))}" for token, values in vectors.items()]
    path.write_text("3 16\n" + "\n".join(lines) + "\n", encoding="utf-8")
    model = small_model(encoder_embed_path=str(path))
    weight = model.encoder.embedder.tokens.weight
    words = model.encoder.dictionary
    assert (weight[words.index("w3")] == 0.5).all()
    assert (weight[words.index("w7")] == -1.0).all()
    assert (weight[words.unk()] != 9.0).all()
    assert (weight[words.pad()] == 0).all()
    path.write_text("w3 1 2 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vectors.txt:1: 3 values, but the embedding dimension is 16"):
        small_model(encoder_embed_path=str(path))
    path.write_text("w3 " + "1 " * 15 + "one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vectors.txt:1: could not convert .*'one'.* 16 numbers"):
        small_model(encoder_embed_path=str(path))
    path.write_text("w3 " + "1 " * 15 + "nan\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vectors.txt:1: the vector of 'w3' is not finite"):
        small_model(encoder_embed_path=str(path))
    path.write_text("elsewhere " + "1 " * 16 + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no token of the dictionary"):
        small_model(encoder_embed_path=str(path))
