"""How far the demo is, and how long it will still take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ctnet_nnunet.training_log import TrainingState

START_SHARE, TRAINING_SHARE = 0.15, 0.6
"""Of a training step's time: until its first epoch, and its epochs. The rest is the final validation."""


def training_fraction(state: TrainingState | None, epochs: int, elapsed_share: float) -> float:
    """Done part of a training step; before its first epoch, from the share of the expected time that has passed."""
    if state is None:
        return min(START_SHARE, elapsed_share)
    return START_SHARE + TRAINING_SHARE * min(1.0, state.epoch / epochs) + _finishing(state, epochs)


def _finishing(state: TrainingState, epochs: int) -> float:
    # The last epoch's loss is in the log: what is left is the final validation.
    return 0.05 if state.epoch + 1 >= epochs and state.loss else 0.0


@dataclass
class Estimator:
    """Remaining seconds from the steps' expected seconds, scaled by how this machine has done so far."""

    expected: Sequence[float]
    spent: float = 0.0
    planned: float = 0.0
    skipped: set[int] = field(default_factory=set)

    def finish(self, step: int, seconds: float, fresh_share: float = 1.0) -> None:
        """Count a finished step; ``fresh_share`` is the part of it that was run now and not in an earlier run."""
        self.spent += seconds
        self.planned += self.expected[step] * fresh_share

    def skip(self, step: int) -> None:
        """Leave out a step that was finished in an earlier run."""
        self.skipped.add(step)

    def remaining(self, step: int, fraction: float, elapsed: float) -> float:
        """Seconds left, ``elapsed`` seconds into ``step`` of which ``fraction`` is done."""
        left = self.expected[step] * (1.0 - fraction)
        left += sum(s for i, s in enumerate(self.expected) if i > step and i not in self.skipped)
        planned = self.planned + self.expected[step] * fraction
        # One expected minute counts as evidence from the start: the first seconds say little about a machine.
        scale = (self.spent + elapsed + 60.0) / (planned + 60.0)
        return left * scale

    def done_share(self, step: int, fraction: float) -> float:
        """Part of all the work that is done, for a progress bar."""
        done = sum(self.expected[:step]) + self.expected[step] * fraction
        return done / sum(self.expected)
