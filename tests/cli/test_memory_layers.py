"""The plugin through fairseq's real command lines: training, resuming, decoding, options by flags and by Hydra."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from fairseq_compat import checkpoints
from tests.support.command_lines import TINY, Command, run
from tests.support.paths import ROOT

PLUGIN = ROOT / "memory_layers"
SIZES = {"--memory-keys": 16, "--memory-key-dim": 8, "--memory-topk": 4, "--memory-heads": 2}
MEMORY = [
    *("--user-dir", PLUGIN, "--optimizer", "product_key_adam", "--clip-norm", 1),
    *(word for option in SIZES.items() for word in option),
]
# Every option is in one of these.
CHOICES = {
    "memory_transformer": [
        *("--memory-encoder-layers", 1, "--memory-decoder-layers", 1, "--memory-share-table", "--memory-qk-norm"),
        *("--memory-query-norm", "layer", "--memory-lr", 0.01, "--memory-weight-decay", 0.01, "--weight-decay", 0.01),
    ],
    "memory_transformer_small": [
        *("--memory-join", "--memory-gated", "--memory-value-dim", 10, "--memory-query-hidden", "12,8"),
        *("--memory-query-norm", "none", "--checkpoint-activations", "--memory-backend", "torch"),
        *("--lr-scheduler", "inverse_sqrt", "--warmup-updates", 4),
    ],
    "memory_transformer_iwslt_de_en": [
        *("--memory-flat", "--memory-shared-keys", "--memory-input-dropout", 0.1, "--memory-query-dropout", 0.1),
        *("--memory-value-dropout", 0.1, "--decoder-normalize-before", "--store-ema", "--memory-sharded"),
    ],
}  # fmt: skip


def train(folder: Path, corpus: Path, *options: object, arch: str = "memory_transformer_small") -> Command:
    arguments = [corpus, *TINY, *MEMORY, "--arch", arch, "--save-dir", folder, "--max-update", 8, *options]
    return run(folder.with_suffix(".log"), "fairseq_compat.train", *arguments)


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"train_inner.*? loss=([\d.]+)", output)]


def hypotheses(command: Command) -> dict[int, str]:
    """Sentence number → best hypothesis."""
    assert command.status == 0, command.output
    return {int(number): text for number, text in re.findall(r"^D-(\d+)\t\S+\t(.*)$", command.output, flags=re.M)}


def generate(log: Path, corpus: Path, checkpoint: Path, *options: object) -> Command:
    return run(
        log,
        "fairseq-generate",
        *(
            corpus,
            "--user-dir",
            PLUGIN,
            "--path",
            checkpoint,
            "--cpu",
            "--beam",
            3,
            "--max-len-b",
            12,
            "--num-workers",
            0,
            *options,
        ),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """The folder of a training with the small architecture, with checkpoints of updates 4 and 8."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    command = train(folder, tiny_corpus, "--save-interval-updates", 4)
    assert command.status == 0, command.output
    return folder


@pytest.mark.parametrize("arch", CHOICES)
def test_every_choice_trains_and_decodes(arch: str, tmp_path: Path, tiny_corpus: Path) -> None:
    command = train(tmp_path / "run", tiny_corpus, *CHOICES[arch], arch=arch)
    assert command.status == 0, command.output
    history = losses(command.output)
    assert len(history) == 8
    assert min(history[4:]) < history[0]
    assert re.search(r"valid \| .* memory_used_d1 0\.\d+ \| memory_kl_d1 \d", command.output)
    table = checkpoints.load(tmp_path / "run" / "checkpoint_last.pt")["model"]["decoder.layers.0.memory.table.weight"]
    assert table.shape == (256, 10 if "--memory-value-dim" in CHOICES[arch] else 16)
    output = generate(tmp_path / "generate.log", tiny_corpus, tmp_path / "run" / "checkpoint_last.pt")
    assert sorted(hypotheses(output)) == list(range(20))


def test_decoding_does_not_depend_on_batches(trained: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    results = [
        hypotheses(generate(tmp_path / "log", tiny_corpus, trained / "checkpoint_last.pt", "--batch-size", size))
        for size in (1, 20)
    ]
    assert len(results[0]) == 20
    assert results[0] == results[1]


def assert_same(one: object, other: object) -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same(value, other[name])
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(
    "precision", [[], ["--bf16", "--store-ema"], ["--fp16", "--fp16-init-scale", 4]], ids=lambda words: words[:1]
)
def test_resuming_is_exact(precision: list[object], trained: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    whole = trained
    if precision:
        whole = tmp_path / "whole"
        command = train(whole, tiny_corpus, *precision, "--save-interval-updates", 4)
        assert command.status == 0, command.output
    folder = tmp_path / "resumed"
    folder.mkdir()
    shutil.copy(whole / "checkpoint_1_4.pt", folder / "checkpoint_last.pt")
    command = train(folder, tiny_corpus, *precision, "--save-interval-updates", 4)
    assert command.status == 0, command.output
    one, other = (checkpoints.load(path / "checkpoint_last.pt") for path in (whole, folder))
    assert_same(one["model"], other["model"])
    assert_same(one["last_optimizer_state"], other["last_optimizer_state"])
    averaged = one["extra_state"].get("ema", {})
    assert_same(averaged, other["extra_state"].get("ema", {}))
    for state in (one["model"], *([averaged] if averaged else [])):
        assert state["decoder.layers.0.memory.query.1.running_var"].dtype == torch.float32
    (rows,) = one["last_optimizer_state"]["tables"]["tables"]
    assert ("master" in rows) == bool(precision)
    assert rows["exp_avg"].dtype == torch.float32


def test_from_a_plain_transformers_checkpoint(tmp_path: Path, tiny_corpus: Path) -> None:
    plain = run(tmp_path / "plain.log", "fairseq-train", tiny_corpus, *TINY, "--save-dir", tmp_path, "--max-update", 2)
    assert plain.status == 0, plain.output
    command = train(
        tmp_path / "run",
        tiny_corpus,
        *("--finetune-from-model", tmp_path / "checkpoint_last.pt", "--lr", 0, "--memory-lr", 0.001),
    )
    assert command.status == 0, command.output
    assert command.output.count("the memories start fresh") == 1
    before = checkpoints.load(tmp_path / "checkpoint_last.pt")["model"]
    after = checkpoints.load(tmp_path / "run" / "checkpoint_last.pt")["model"]
    assert set(before) - set(after) == {f"decoder.layers.0.fc{n}.{what}" for n in (1, 2) for what in ("weight", "bias")}
    for name in set(before) & set(after):
        assert torch.equal(before[name], after[name]), name


def test_hydra_gives_the_same_translator(trained: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    model = {name.removeprefix("--").replace("-", "_"): value for name, value in SIZES.items()}
    model |= {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
              (("layers", 1), ("embed_dim", 16), ("ffn_embed_dim", 32), ("attention_heads", 2))}  # fmt: skip
    model |= dict(share_all_embeddings="true", dropout=0.2)
    command = run(
        tmp_path / "log",
        "fairseq-hydra-train",
        *("+task._name=translation", f"+task.data={tiny_corpus}", "+task.source_lang=de", "+task.target_lang=en"),
        *("+model._name=memory_transformer_small", *(f"+model.{name}={value}" for name, value in model.items())),
        *(
            "+optimizer._name=product_key_adam",
            "optimization.lr=[0.005]",
            "lr_scheduler=fixed",
            "dataset.batch_size=16",
        ),
        *("criterion=label_smoothed_cross_entropy", "criterion.label_smoothing=0.1", "dataset.num_workers=0"),
        *(f"common.user_dir={PLUGIN}", "common.cpu=true", "common.seed=3", "optimization.clip_norm=1"),
        *("optimization.max_update=8", f"checkpoint.save_dir={tmp_path}/run", "dataset.update_epoch_batch_itr=true"),
        *(f"hydra.run.dir={tmp_path}/hydra", "hydra.job.chdir=false"),
    )
    assert command.status == 0, command.output
    one, other = (checkpoints.load(path / "checkpoint_last.pt")["model"] for path in (trained, tmp_path / "run"))
    assert_same(one, other)


LM = {"decoder_layers": 2, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32, "decoder_attention_heads": 2}


def test_the_language_model_by_flags_and_by_hydra(tmp_path: Path, tiny_corpus: Path) -> None:
    """The data's first language alone; fairseq-eval-lm reads the checkpoint."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(tiny_corpus / "dict.de.txt", data / "dict.txt")
    for split in ("train", "valid", "test"):
        for end in ("bin", "idx"):
            shutil.copy(tiny_corpus / f"{split}.de-en.de.{end}", data / f"{split}.{end}")
    common = ["--task", "language_modeling", "--tokens-per-sample", 32]
    folder = tmp_path / "run"
    command = run(
        tmp_path / "train.log",
        "fairseq-train",
        *(data, *common, *MEMORY, "--arch", "memory_transformer_lm_small", "--cpu", "--lr", 0.005, "--batch-size", 16),
        *("--max-update", 6, "--save-dir", folder, "--log-format", "simple", "--log-interval", 1, "--num-workers", 0),
        *(word for name, value in LM.items() for word in (f"--{name.replace('_', '-')}", value)),
    )
    assert command.status == 0, command.output
    history = losses(command.output)
    assert min(history[1:]) < history[0]
    assert "memory_used_d2" in command.output
    evaluation = [
        "fairseq-eval-lm",
        data,
        "--user-dir",
        PLUGIN,
        "--cpu",
        *common,
        "--batch-size",
        10,
        "--num-workers",
        0,
    ]
    command = run(tmp_path / "eval.log", *evaluation, "--path", folder / "checkpoint_last.pt")
    assert command.status == 0, command.output
    assert re.search(r"Loss \(base 2\): \d+\.\d+, Perplexity: \d+", command.output)

    model = LM | {name.removeprefix("--").replace("-", "_"): value for name, value in SIZES.items()}
    model |= dict(decoder_input_dim=16, decoder_output_dim=16, decoder_normalize_before="true")
    command = run(
        tmp_path / "hydra.log",
        "fairseq-hydra-train",
        *("task=language_modeling", f"task.data={data}", "task.tokens_per_sample=32"),
        *("+model._name=memory_transformer_lm", *(f"+model.{name}={value}" for name, value in model.items())),
        *(
            "+optimizer._name=product_key_adam",
            "optimization.lr=[0.005]",
            "lr_scheduler=fixed",
            "dataset.batch_size=16",
        ),
        *(f"common.user_dir={PLUGIN}", "common.cpu=true", "optimization.clip_norm=1", "criterion=cross_entropy"),
        *("optimization.max_update=6", f"checkpoint.save_dir={tmp_path}/hydra-run", "dataset.num_workers=0"),
        *(f"hydra.run.dir={tmp_path}/hydra", "hydra.job.chdir=false"),
    )
    assert command.status == 0, command.output
    one, other = (checkpoints.load(path / "checkpoint_last.pt")["model"] for path in (folder, tmp_path / "hydra-run"))
    assert_same(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory-key-dim", 7], "--memory-key-dim must be even: a query is split in halves, given 7"),
        (["--optimizer", "adam"], "a model with memories needs --optimizer product_key_adam, given adam"),
        (["--memory-lr", -1], "--memory-lr must be at least 0, given -1.0"),
        (["--use-bmuf"], "--use-bmuf does not work with memories; leave it out"),
        (["--memory-backend", "cpu", "--fp16"], "--memory-backend cpu: the cpu kernels take torch.float32,"),
    ],
    ids=["sizes", "optimizer", "rate", "distribution", "backend"],
)
def test_wrong_options_end_in_one_line(options: list[object], message: str, tmp_path: Path, tiny_corpus: Path) -> None:
    command = train(tmp_path / "run", tiny_corpus, *options)
    assert command.status == 1
    assert len(command.errors) == 1, command.output
    assert message in command.errors[0]
    assert "Traceback" not in command.output
    assert not (tmp_path / "run" / "checkpoint_last.pt").exists()


def test_a_checkpoint_of_another_memory_is_refused(trained: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained / "checkpoint_1_4.pt", folder / "checkpoint_last.pt")
    command = train(folder, tiny_corpus, "--memory-keys", 17)
    assert command.status == 1
    assert "does not fit the model" in command.errors[0]
