"""The phases of reciprocal learning: the teacher alone, both networks, and, if asked for, the student alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctnet_nnunet.planning.semi_supervised import SemiSupervisedBase

Phase = Literal["teacher", "reciprocal", "student"]
COST = {"teacher": 1.0, "reciprocal": 4.0, "student": 1.0}
"""Of a step, relative to a supervised one: in forward passes a reciprocal step has four times its cost."""


@dataclass(frozen=True)
class Phases:
    """Attributes:
    epochs: Of the whole training.
    teachers: First epochs, in which the teacher alone trains.
    finetuning: Last epochs, in which the student alone trains.
    teacher_restarts: Whether the teacher's rate begins anew behind its own epochs.
    student_follows: Whether the student goes on from the teacher's weights at the teacher's rate.
    """

    epochs: int
    teachers: int
    finetuning: int
    teacher_restarts: bool
    student_follows: bool

    @classmethod
    def planned(cls, options: SemiSupervisedBase, epochs: int) -> Phases:
        """Of a new training; the teacher's own epochs are at least one, and none where it is given weights."""
        share = 0.0 if options.teacher_weights is not None else options.teacher_pretraining
        teachers = max(1, round(share * epochs)) if share else 0
        follows = options.student_from_teacher and not options.teacher_restarts
        return cls(epochs, teachers, options.student_finetune_epochs, options.teacher_restarts, follows)

    @property
    def teachers_end(self) -> int:
        """The first epoch in which the teacher no longer learns."""
        return self.epochs - self.finetuning

    @property
    def are_complete(self) -> bool:
        """Whether there is an epoch of reciprocal learning."""
        return self.teachers < self.teachers_end

    def at(self, epoch: int) -> Phase:
        """Who learns in an epoch, counted from 0."""
        if epoch < self.teachers:
            return "teacher"
        return "reciprocal" if epoch < self.teachers_end else "student"

    def student(self) -> list[tuple[int, int]]:
        """First epoch and length of each stretch in which the student's rate rises and falls anew."""
        return [(0, self.epochs)] if self.student_follows else _parted(self.teachers, self.epochs)

    def teacher(self) -> list[tuple[int, int]]:
        """The same of the teacher's rate, up to its last step: behind it the student alone may learn."""
        return _parted(self.teachers, self.teachers_end) if self.teacher_restarts else [(0, self.teachers_end)]

    def costs(self) -> list[float]:
        """What a step of each epoch takes, relative to a supervised one."""
        return [COST[self.at(epoch)] for epoch in range(self.epochs)]


def _parted(first: int, end: int) -> list[tuple[int, int]]:
    """Two stretches, the first of ``first`` epochs, up to epoch ``end``; one where that leaves nothing."""
    return [(start, epochs) for start, epochs in ((0, first), (first, end - first)) if epochs > 0]
