"""What ``ctnet benchmark cross-modality`` measured, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctnet_nnunet.benchmark.cross_modality import FROM_STAGE_ONE, KAIMING, Figures

QUARTERS = ("1st quarter", "2nd quarter", "3rd quarter", "last quarter")


def tables(figures: Figures) -> str:
    """Losses over quarters of the trainings; a cell is the mean over all trainings and, with several, their range."""
    first = [*_head("stage 1: mean loss over", QUARTERS), *(
        f"| {name} | {' | '.join(_cells(courses))} |" for name, courses in figures.transition.items()
    )]  # fmt: skip
    second = _head("training: mean loss of the deciding output over", [*QUARTERS, "Dice of the left-out scan"])
    for arm, courses in figures.losses.items():
        second.append(f"| {arm} | {' | '.join([*_cells(courses), _cell(figures.dice[arm])])} |")
    return "\n".join([*first, "", *second, "", _count(figures)])


def quarters(course: Sequence[float]) -> list[float]:
    """Values of epochs → their means over quarters of the training; at least four epochs.

    >>> quarters([8.0, 6.0, 4.0, 4.0, 3.0, 1.0, 1.0, 1.0])
    [7.0, 4.0, 2.0, 1.0]
    """
    return [float(np.nanmean(part)) for part in np.array_split(np.asarray(course), len(QUARTERS))]


def _head(first: str, others: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(others)} |", "|---" * (len(others) + 1) + "|"]


def _cells(courses: Sequence[Sequence[float]]) -> list[str]:
    return [_cell(column) for column in zip(*map(quarters, courses), strict=True)]


def _cell(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _count(figures: Figures) -> str:
    """In how many pairs of trainings, alike but for the start, the one from stage 1 had the lower loss."""
    started, fresh = (
        np.array([quarters(course) for course in figures.losses[arm]]) for arm in (FROM_STAGE_ONE, KAIMING)
    )
    lower = (started < fresh).sum(0)
    return f"From CMFT below Kaiming's in {', '.join(map(str, lower))} of {len(started)} trainings, quarter by quarter."
