"""The figures of a run: rewinding, the best validation, the time left, the lines for people."""

from pathlib import Path
from typing import Any

import pytest

from fairseq_compat import events
from fairseq_compat.events import Figures
from recipes.training import progress
from recipes.training.progress import Progress
from recipes.training.run import Run
from thoth_core.errors import UserError


def figures(kind: Any = "train", updates: int = 1, **more: Any) -> Figures:
    return Figures(kind=kind, updates=updates, **{"epoch": 1, "seconds": float(updates), **more})


def test_the_time_left_is_that_of_the_nearest_limit() -> None:
    now = figures(updates=100, seconds=50.0, epochs=2.0)
    assert progress.remaining(now, {"max-update": 300}) == pytest.approx(100)
    assert progress.remaining(now, {"max-update": 300, "max-epoch": 3}) == pytest.approx(25)
    assert progress.remaining(now, {"max-epoch": 3, "minutes": 1}) == pytest.approx(10)
    assert progress.remaining(now, {"minutes": 0.5}) == 0
    assert progress.remaining(now, {"patience": 3}) is None


def test_figures_beyond_the_checkpoint_do_not_count(tmp_path: Path) -> None:
    """A killed training had reported 30 updates, and its last line was cut; it resumed from the checkpoint of 20."""
    run = Run(tmp_path)
    for updates in (10, 20, 30):
        events.append(run.progress_path, figures(updates=updates, loss=1.0))
    with run.progress_path.open("a") as file:
        file.write('{"kind": "tra')
    assert [record.updates for record in run.figures()] == [10, 20, 30]
    events.append(run.progress_path, events.Resumed(kind="resumed", checkpoint="x.pt", epoch=1, updates=20))
    events.append(run.progress_path, figures(updates=30, loss=1.5))
    assert [(record.updates, record.loss) for record in run.figures()] == [(10, 1.0), (20, 1.0), (30, 1.5)]
    state = Progress(run, {})
    state.rewind(10)
    state.add(figures(updates=15))
    assert [record.updates for record in state.figures] == [10, 15]


def test_an_old_progress_file_is_read(tmp_path: Path) -> None:
    """It holds figures only, with those of the criterion beside ours."""
    run = Run(tmp_path)
    line = '{"kind": "valid", "epoch": 1, "loss": NaN, "updates": 3, "accuracy_1": 41.5, "seconds": 4.2}\n'
    run.progress_path.write_text(line)
    (record,) = run.figures()
    assert record.model_extra == {"accuracy_1": 41.5}
    assert record.loss != record.loss


@pytest.mark.parametrize(
    ("line", "field"),
    [('{"kind": "valid", "updates": 1, "loss": "low"}', "loss"), ('{"kind": "train"}', "updates"),
     ('{"kind": "rest", "updates": 1}', "kind")],
)  # fmt: skip
def test_a_wrong_event_is_refused_by_its_line(line: str, field: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "toy/mini")
    run.create()
    run.progress_path.write_text('{"kind": "parameters", "count": 1}\n' + line + "\n")
    with pytest.raises(
        UserError, match=rf"progress.jsonl: line 2: .*{field}.*; remove this line, or .*train.sh toy mini"
    ):
        run.figures()


def test_a_validation_without_a_finite_loss_is_not_the_best(tmp_path: Path) -> None:
    state = Progress(Run(tmp_path), {})
    for n, loss in enumerate((float("nan"), float("inf"), 3.0, 2.5, float("nan"), 2.5), 1):
        line = state.add(figures("valid", n, loss=loss))
        assert ("best" in line) == (n > 2)
    assert state.state()["best_valid_loss"] == 2.5
    assert state.state()["best_updates"] == 4


def test_the_lines_for_people(tmp_path: Path) -> None:
    state = Progress(Run(tmp_path), {"max-update": 200})
    assert state.summary() == "0 updates in 0:00."
    valid = figures("valid", 90, loss=2.0, perplexity=3.5, bleu=12.3456, accuracy_1=40.04, accuracy_2=50.0)
    assert state.add(valid) == (
        "epoch 1  update 90  valid loss 2.000  perplexity 3.50  validation BLEU 12.35  "
        "accuracy by exit 40.0 50.0  (best so far)  1:30 elapsed"
    )
    line = state.add(figures(updates=100, loss=4.21, tokens_per_second=12345.6))
    assert line == "epoch 1  update 100  loss 4.210  valid 2.000  12,346 tokens/s  1:40 elapsed  1:40 left"
    assert state.add(figures("epoch", 3700, loss=4.0)) == "epoch 1  update 3,700  mean loss 4.000  1:01:40 elapsed"
    assert state.summary() == "3,700 updates in 1:01:40, best valid loss 2.000 at update 90."
