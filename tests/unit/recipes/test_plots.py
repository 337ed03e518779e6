"""recipes.reporting.plots: PNG files that show the data."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from fairseq_compat.events import Figures
from recipes.reporting.plots.alignment import plot_alignment
from recipes.reporting.plots.exits import plot_exits
from recipes.reporting.plots.slots import plot_slots
from recipes.reporting.plots.training import plot_training

SOURCE = ["Ein", "Mann", "läuft", "im", "Park", "</s>"]
TARGET = ["A", "man", "walks", "in", "the", "park"]


def read(path: Path) -> np.ndarray:
    """(height, width, 4) between 0 and 1."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return matplotlib.image.imread(path)


def darkness(picture: np.ndarray) -> np.ndarray:
    """(height, width): 1 where black."""
    return 1 - picture[:, :, :3].mean(2)


def test_an_alignment_is_dark_where_the_weights_are(tmp_path: Path) -> None:
    weights = np.zeros((6, 6))
    weights[4, 1] = 1.0  # "the" on "Mann"
    plot_alignment(SOURCE, TARGET, weights, tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    blue = (picture[:, :, 2] - picture[:, :, 0] > 0.25) & (darkness(picture) > 0.3)
    # Left of the colour bar, whose own dark end is not meant.
    rows, columns = np.nonzero(blue[:, : int(picture.shape[1] * 0.75)])
    assert len(rows) > 100
    height, width = picture.shape[:2]
    assert 0.5 < rows.mean() / height < 0.95  # the fifth row of six, labels above
    assert 0.1 < columns.mean() / width < 0.45  # the second column of six


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 60])
def test_the_picture_grows_with_the_sentence(count: int, tmp_path: Path) -> None:
    words = [f"word{index}" for index in range(count)]
    plot_alignment(words, words, np.eye(count), tmp_path / "a.png", title="sentence 1")
    height, width = read(tmp_path / "a.png").shape[:2]
    assert width >= 40 * count  # every word has room for its label
    assert height >= 40 * count


def test_words_of_all_kinds_can_be_labels(tmp_path: Path) -> None:
    source = ["$5", "a_b^c", "\\alpha", "日本", "x" * 60, ""]
    plot_alignment(source, ["&", "%"], np.full((2, 6), 1 / 6), tmp_path / "a.png", title="$ costs $")
    assert read(tmp_path / "a.png").size > 0


def test_weights_must_fit_the_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(6, 5\).*6 target and 6 source words"):
        plot_alignment(SOURCE, TARGET, np.zeros((6, 5)), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def figures() -> list[Figures]:
    train = [
        Figures(kind="train", updates=n, seconds=n / 2, loss=9 - n / 50, nll_loss=8 - n / 50)
        for n in range(10, 200, 10)
    ]
    valid = [
        Figures(kind="valid", updates=n, seconds=n / 2, loss=loss, nll_loss=loss - 1)
        for n, loss in ((50, 8.0), (100, 6.5), (150, 6.0), (190, 6.2))
    ]
    return [*train, *valid]


def test_training_curves_are_drawn(tmp_path: Path) -> None:
    assert plot_training(figures(), tmp_path / "t.png", "a model on a corpus")
    picture = read(tmp_path / "t.png")
    red = (picture[:, :, 0] > 0.6) & (picture[:, :, 1] < 0.4)
    # Both panels have a curve of validations.
    half = picture.shape[1] // 2
    assert red[:, :half].sum() > 200
    assert red[:, half:].sum() > 200


def test_the_same_records_are_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert plot_training(figures(), tmp_path / f"{name}.png", "t")
        plot_alignment(SOURCE, TARGET, np.eye(6), tmp_path / f"{name}2.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a2.png").read_bytes() == (tmp_path / "b2.png").read_bytes()


def test_a_loss_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    """In training and in a validation, the first of which would be the least of all."""
    lost = [
        Figures(kind="valid", updates=40, seconds=20.0, loss=math.nan, nll_loss=math.nan),
        Figures(kind="train", updates=40, seconds=20.0, loss=math.nan, nll_loss=math.inf),
    ]
    assert plot_training(figures(), tmp_path / "a.png", "t")
    assert plot_training([*lost, *figures()], tmp_path / "b.png", "t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert not plot_training(lost, tmp_path / "c.png", "t")


@pytest.mark.parametrize(
    "few",
    [
        [Figures(kind="valid", updates=5, loss=4.0, seconds=1.0)],
        [Figures(kind="train", updates=5, loss=4.0, seconds=1.0)],
        [Figures(kind="epoch", updates=5, loss=4.0), Figures(kind="valid", updates=5, loss=4.0)],
    ],
)
def test_few_records_are_enough(few: list[Figures], tmp_path: Path) -> None:
    assert plot_training(few, tmp_path / "t.png", "t")
    assert read(tmp_path / "t.png").size > 0


@pytest.mark.parametrize("nothing", [[], [Figures(kind="train", updates=1)]])
def test_without_records_nothing_is_drawn(nothing: list[Figures], tmp_path: Path) -> None:
    assert not plot_training(nothing, tmp_path / "t.png", "t")
    assert not (tmp_path / "t.png").exists()


def test_a_slot_that_is_read_often_is_bright(tmp_path: Path) -> None:
    shares = np.full((2, 8, 8), 1 / 64)
    shares[1] = 0
    shares[1, 0, 7] = 1
    plot_slots(shares, tmp_path / "s.png", "slots")
    picture = read(tmp_path / "s.png")
    left, right = picture[:, : int(picture.shape[1] * 0.42)], picture[:, int(picture.shape[1] * 0.42) :]
    yellow = [(half[:, :, 0] > 0.9) & (half[:, :, 1] > 0.8) & (half[:, :, 2] < 0.3) for half in (left, right)]
    assert not yellow[0].any(), "uniform use"
    rows, columns = np.nonzero(yellow[1][:, : int(right.shape[1] * 0.75)])
    assert rows.size
    assert rows.mean() < picture.shape[0] / 2 < picture.shape[1]
    assert columns.mean() > 0.35 * right.shape[1]


def test_tokens_have_the_colour_of_their_exit(tmp_path: Path) -> None:
    """Early exits are yellow, late ones dark; a long sentence takes more lines."""
    words = ["▁ein", "▁Hund", "</s>"]
    for name, exit in (("early", 1), ("late", 6)):
        plot_exits([(words, [exit] * 3)], 6, tmp_path / f"{name}.png", "$")
    early, late = (read(tmp_path / f"{name}.png")[:, : 11 * 60] for name in ("early", "late"))
    bright = [(p[:, :, 0] > 0.9) & (p[:, :, 1] > 0.8) & (p[:, :, 2] < 0.3) for p in (early, late)]
    assert bright[0].sum() > 500
    assert not bright[1].any()
    plot_exits([(words * 40, [2] * 120)] * 2, 6, tmp_path / "long.png", "long")
    assert read(tmp_path / "long.png").shape[0] > 2 * early.shape[0]
    with pytest.raises(ValueError, match="zip"):
        plot_exits([(words, [1])], 6, tmp_path / "wrong.png", "wrong")
