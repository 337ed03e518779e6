"""The request of a calibration: which goal a threshold is chosen for. Nothing here imports torch."""

import math
from dataclasses import dataclass
from typing import Literal

from recipes.evaluation.request import Request
from thoth_core.errors import UserError

Goal = Literal["mean_exit", "bleu_loss", "disagreement"]
DEFAULT_STEPS: dict[Goal, int] = {"mean_exit": 1_000, "bleu_loss": 20, "disagreement": 50}
DEFAULT_LEVEL = 0.05


@dataclass(frozen=True)
class CalibrationRequest:
    """The options of recipes/calibrate.sh beside those of a `Request`."""

    goal: Goal
    value: float  # of the goal
    policy: str  # confidence or halting
    steps: int  # thresholds are multiples of 1 / this
    level: float = DEFAULT_LEVEL  # of disagreement: the probability at most that it is exceeded
    resplits: int | None = None  # of disagreement: number of random halves
    per_exit: bool = False  # a threshold for each block

    def output_name(self, request: Request) -> str:
        """The file's name without its ending; another request has another file."""
        goal = f"{self.goal.replace('_', '-')}-{self.value:g}"
        level = [f"level-{self.level:g}"] if self.goal == "disagreement" else []
        steps = [] if self.steps == DEFAULT_STEPS[self.goal] else [f"steps-{self.steps}"]
        split = [] if request.split == "valid" else [request.split]
        each = ["per-exit"] if self.per_exit else []
        return request.output_name("calibration", self.policy, *each, goal, *level, *steps, *split)

    def check_sentences(self, count: int, split: str) -> None:
        """Raise a UserError if `count` sentences could not prove anything, even without a single disagreement."""
        needed = math.ceil(math.log(self.level) / math.log1p(-self.value))
        half = "half of " if self.resplits else ""
        if (count // 2 if half else count) < needed:
            raise UserError(
                f"--disagreement {self.value:g} --level {self.level:g} needs {needed:,} sentences at least, but "
                f"{split} has {half}{count:,}; raise one of them, or give a larger --split"
            )
