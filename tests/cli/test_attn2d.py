"""The plugin through fairseq's real command lines: every network with every aggregator trains and decodes."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attn2d.aggregators import AGGREGATORS
from attn2d.convnet import CONVNETS
from tests.support.paths import ROOT

PLUGIN = str(ROOT / "attn2d")
SMALL = [
    *("--encoder-embed-dim", "16", "--decoder-embed-dim", "16", "--convnet-channels", "16"),
    *("--convnet-layers", "2", "--convnet-kernel-size", "3", "--resnet-ffn-dim", "16"),
    *("--densenet-growth", "8", "--max-source-positions", "64", "--max-target-positions", "64"),
]
# Choices that are not combined with all others each ride along with one of the pairs.
RIDERS = [
    ["--convnet-norm", "none", "--positions", "none"],
    ["--positions", "learned", "--tie-embeddings", "none"],
    ["--tie-embeddings", "all", "--grid-backend", "native"],
    ["--convnet-checkpointing", "--left-pad-source"],
    ["--convnet-norm", "batch"],
    ["--convnet-groups", "2", "--grid-backend", "torch"],
    ["--convnet-dilation", "2", "--convnet-channels", "0"],
    ["--convnet-checkpointing", "--positions", "none"],
]
PAIRS = list(zip(itertools.product(CONVNETS, AGGREGATORS), RIDERS, strict=True))


def run(command: str, *arguments: str, text: str | None = None, code: int = 0) -> str:
    """Run one of fairseq's commands; its standard output and error, which must end with ``code``."""
    result = subprocess.run(
        [str(Path(sys.executable).parent / command), *arguments],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == code, result.stdout
    return result.stdout


def train(data: Path, folder: Path, *arguments: str, arch: str = "pervasive_small") -> Path:
    """A few updates on the toy corpus; the checkpoint."""
    output = run(
        "fairseq-train",
        *(str(data), "--user-dir", PLUGIN, "--task", "pervasive_translation", "--arch", arch, "--cpu"),
        *("--optimizer", "adam", "--lr", "0.003", "--max-tokens", "400", "--max-grid-cells", "2000"),
        *("--max-update", "6", "--save-dir", str(folder), "--log-format", "simple", "--log-interval", "1"),
        *arguments,
    )
    losses = [float(loss) for loss in re.findall(r"train_inner.*? loss=([\d.]+)", output)]
    assert len(losses) == 6, output
    assert min(losses[1:]) < losses[0]
    return folder / "checkpoint_last.pt"


def hypotheses(output: str) -> dict[int, str]:
    """Sentence number → best hypothesis, of fairseq-generate's output."""
    return {int(number): text for number, text in re.findall(r"^D-(\d+)\t\S+\t(.*)$", output, flags=re.M)}


def generate(data: Path, checkpoint: Path, *arguments: str) -> str:
    """Decode the toy test set with beam 5."""
    return run(
        "fairseq-generate",
        *(str(data), "--user-dir", PLUGIN, "--path", str(checkpoint), "--cpu", "--beam", "5"),
        *("--max-len-b", "12", "--max-tokens", "400", *arguments),
    )


@pytest.mark.parametrize(("pair", "rider"), PAIRS, ids=["-".join(pair) for pair, _ in PAIRS])
def test_every_network_and_aggregator(
    pair: tuple[str, str], rider: list[str], tiny_corpus: Path, tmp_path: Path
) -> None:
    convnet, aggregator = pair
    choice = ["--convnet", convnet, "--aggregator", aggregator]
    checkpoint = train(tiny_corpus, tmp_path, *SMALL, *choice, *rider)
    output = generate(tiny_corpus, checkpoint, "--print-alignment")
    assert sorted(hypotheses(output)) == list(range(20))
    alignments = re.findall(r"^A-\d+\t(.+)$", output, flags=re.M)
    assert alignments
    assert all(re.fullmatch(r"(\d+-\d+ ?)+", line) for line in alignments)


@pytest.mark.parametrize("arch", ("pervasive", "pervasive_densenet"))
def test_named_architectures(arch: str, tiny_corpus: Path, tmp_path: Path) -> None:
    checkpoint = train(tiny_corpus, tmp_path, "--lr", "0.0005", "--no-save-optimizer-state", arch=arch)
    saved = torch.load(checkpoint, weights_only=True)
    depth = {int(key.split(".")[3]) for key in saved["model"] if key.startswith("decoder.convnet.layers.")}
    assert len(depth) == {"pervasive": 14, "pervasive_densenet": 24}[arch]


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small architecture."""
    return train(tiny_corpus, tmp_path_factory.mktemp("trained"), *SMALL)


def test_hydra_gives_the_same_model(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """The same options as Hydra overrides: same losses, same weights."""
    names = [name.removeprefix("--").replace("-", "_") for name in SMALL[::2]]
    model = [
        f"+{'task' if name.startswith('max_') else 'model'}.{name}={value}"
        for name, value in zip(names, SMALL[1::2], strict=True)
    ]
    run(
        "fairseq-hydra-train",
        *("+task._name=pervasive_translation", f"+task.data={tiny_corpus}", "+task.max_grid_cells=2000"),
        *("+task.source_lang=de", "+task.target_lang=en", "+model._name=pervasive_small", *model),
        *(f"common.user_dir={PLUGIN}", "common.cpu=true", "criterion=cross_entropy"),
        *("optimizer=adam", "optimization.lr=[0.003]", "lr_scheduler=fixed", "dataset.max_tokens=400"),
        *(
            "optimization.max_update=6",
            f"checkpoint.save_dir={tmp_path}/run",
            f"hydra.run.dir={tmp_path}/hydra",
        ),
        "hydra.job.chdir=false",
    )
    ours = torch.load(trained, weights_only=True)["model"]
    theirs = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)["model"]
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_decoding_does_not_depend_on_batches(trained: Path, tiny_corpus: Path) -> None:
    one = hypotheses(generate(tiny_corpus, trained, "--batch-size", "1"))
    assert one == hypotheses(generate(tiny_corpus, trained, "--batch-size", "20", "--left-pad-source"))


def test_interactive_equals_generate(trained: Path, tiny_corpus: Path) -> None:
    expected = hypotheses(generate(tiny_corpus, trained))
    text = (tiny_corpus.parent / "tiny_text" / "test.de").read_text(encoding="utf-8")
    output = run(
        "fairseq-interactive",
        *(str(tiny_corpus), "--user-dir", PLUGIN, "--path", str(trained), "--cpu", "--beam", "5"),
        *(
            "--task",
            "pervasive_translation",
            "--max-grid-cells",
            "500",
            "--source-lang",
            "de",
            "--target-lang",
            "en",
        ),
        *("--max-len-b", "12", "--buffer-size", "32", "--max-tokens", "200"),
        text=text,
    )
    assert hypotheses(output) == expected


def test_validate(trained: Path, tiny_corpus: Path) -> None:
    output = run(
        "fairseq-validate",
        *(
            str(tiny_corpus),
            "--user-dir",
            PLUGIN,
            "--path",
            str(trained),
            "--cpu",
            "--task",
            "pervasive_translation",
        ),
        *("--max-tokens", "400", "--log-format", "simple"),
    )
    assert re.search(r"valid on 'valid' subset \| loss \d", output), output


def test_from_pretrained(trained: Path, tiny_corpus: Path) -> None:
    from attn2d import PervasiveModel

    hub = PervasiveModel.from_pretrained(str(trained.parent), trained.name, data_name_or_path=str(tiny_corpus))
    lines = (tiny_corpus.parent / "tiny_text" / "test.de").read_text(encoding="utf-8").splitlines()
    translations = hub.translate(lines, beam=5, max_len_b=12)
    assert dict(enumerate(translations)) == hypotheses(generate(tiny_corpus, trained))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--convnet-kernel-size", "4"], "--convnet-kernel-size must be odd, given 4"),
        (["--aggregator", "median"], "argument --aggregator: invalid choice: 'median'"),
        (["--convnet", "lstm"], "argument --convnet: invalid choice: 'lstm'"),
        (["--max-grid-cells", "0"], "--max-grid-cells must be at least 1, given 0"),
        (
            ["--prediction-dropout", "1.5"],
            "--prediction-dropout must be at least 0 and less than 1, given 1.5",
        ),
    ],
)
def test_wrong_options(options: list[str], message: str, tiny_corpus: Path, tmp_path: Path) -> None:
    output = subprocess.run(
        [
            *(sys.executable, "-m", "fairseq_compat.train", str(tiny_corpus), "--user-dir", PLUGIN, "--cpu"),
            *("--task", "pervasive_translation", "--arch", "pervasive_small", "--optimizer", "adam"),
            *("--max-tokens", "100", "--save-dir", str(tmp_path / "run"), *options),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert output.returncode in (1, 2)
    assert [line for line in output.stderr.splitlines() if "rror" in line] == [output.stderr.splitlines()[-1]]
    assert output.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert "usage:" not in output.stderr
    assert not list(tmp_path.glob("run/*.pt"))
