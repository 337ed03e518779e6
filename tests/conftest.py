"""Markers by folder, and fixtures that the test modules share."""

import os
import random
import shutil
from pathlib import Path

# Before torch is imported anywhere: two test processes share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock

from tests.support import recipe_runs

TESTS = Path(__file__).resolve().parent
# Folder below tests → the markers of every test in it.
TIERS = {
    "unit": ("unit",),
    "cli": ("cli", "slow"),
    "recipes": ("recipes", "slow"),
    "stress": ("stress", "slow"),
}
BROWSER_FIXTURES = {"opened"}  # of tests/recipes/test_report.py: a report opened in Chromium


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS):
            for marker in TIERS[item.path.relative_to(TESTS).parts[0]]:
                item.add_marker(marker)
        if BROWSER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("browser")


SYMBOLS = [f"{letter}{number}" for letter in "abcd" for number in range(9)]


def write_toy_text(folder: Path, *, seed: int = 1, train: int = 200, valid: int = 20, test: int = 20) -> None:
    """Write folder/{train,valid,test}.{de,en}: `en` is `de` reversed, 3 to 9 of 36 symbols a sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        sentences = [draw.choices(SYMBOLS, k=draw.randint(3, 9)) for _ in range(count)]
        if split == "train":
            sentences[0] = list(SYMBOLS[:18])  # every symbol occurs, whatever the seed
            sentences[1] = list(SYMBOLS[18:])
        for language, step in (("de", 1), ("en", -1)):
            lines = [" ".join(sentence[::step]) for sentence in sentences]
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def binarise(text: Path, folder: Path, *extra: str) -> None:
    """Binarise text/{train,valid,test}.{de,en} into `folder` with a joined dictionary, as the recipes do."""
    from fairseq import options
    from fairseq_cli import preprocess

    arguments = ["--source-lang", "de", "--target-lang", "en", "--joined-dictionary", "--destdir", str(folder)]
    for split in ("train", "valid", "test"):
        arguments += [f"--{split}pref", str(text / split)]
    preprocess.main(options.get_preprocessing_parser().parse_args([*arguments, *extra]))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole test run, also when several pytest-xdist workers share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(shared_folder: Path) -> Path:
    """The fairseq-preprocess folder of a toy task: `de` sentences and their reversals as `en`.

    train 200, valid 20, test 20 pairs; joined dictionary of 40 entries (36 symbols and fairseq's four).
    The plain text lies in the sibling folder `tiny_text`: {train,valid,test}.{de,en}. Do not write into it.
    """
    folder = shared_folder / "tiny_corpus"
    with FileLock(shared_folder / "tiny_corpus.lock"):
        if not folder.exists():
            write_toy_text(shared_folder / "tiny_text")
            building = shared_folder / "tiny_corpus.building"
            binarise(shared_folder / "tiny_text", building)
            building.rename(folder)
    return folder


# --- for the tests of recipes/train.sh and recipes/evaluate.sh -----------------------------------------


@pytest.fixture(scope="session")
def data(shared_folder: Path) -> Path:
    """A data folder with the prepared corpus `toy`. Do not write into it."""
    return recipe_runs.prepared(shared_folder)


@pytest.fixture(scope="session")
def mini(shared_folder: Path, data: Path) -> Path:
    """The file of a model for it."""
    return shared_folder / "mini.yaml"


@pytest.fixture(scope="session")
def finished(shared_folder: Path) -> Path:
    """A runs folder in which `mini` was trained on `toy`. Do not write into it."""
    return recipe_runs.trained(shared_folder)


@pytest.fixture(scope="session")
def depth(shared_folder: Path, data: Path) -> Path:
    """A folder with depth.yaml, a model with three exits, and runs/ in which it was trained on `toy`."""
    return recipe_runs.trained_depth(shared_folder)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same, to write into."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"
