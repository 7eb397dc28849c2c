"""Means over draws, and paired tests between arms.

A figure of an arm is the mean over its draws, ± the standard deviation over them; a draw's figure is the mean over the
test cases, and a case's the mean over its structures. The tests are Wilcoxon's signed-rank tests on pairs of the same
draw and test case, corrected after Holm for all pairs of arms with the same number of labels. Draws share their test
cases, so the pairs are not independent and p values are a guide only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ctnet_nnunet.evaluation.statistics import PairedTest, Summary, holm, overlap_pairs, paired_test, summarise
from ctnet_nnunet.low_label.scores import Row

Place = tuple[int, str, str]
"""Draw, case and structure."""
METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm")


@dataclass(frozen=True)
class ArmFigures:
    """One line of the tables.

    Attributes:
        arm, labels: Which.
        draws: How many trainings the figures are of.
        metrics: Metric → mean ± sd over draws.
        structures: Structure → mean Dice ± sd over draws.
        missed, spurious: Test structures found in only one of truth and prediction, over all draws.
        rows: How many structures were looked at, over all draws.
    """

    arm: str
    labels: int
    draws: int
    metrics: Mapping[str, Summary]
    structures: Mapping[str, Summary]
    missed: int
    spurious: int
    rows: int


@dataclass(frozen=True)
class Comparison:
    """Two arms on the same draws and cases; ``difference`` is first − second, in Dice points (hundredths)."""

    first: str
    second: str
    labels: int
    pairs: int
    difference: float
    p: float
    p_corrected: float


def arm_figures(rows: Sequence[Row]) -> list[ArmFigures]:
    """The figures of every arm and number of labels, in the order of the rows."""
    found = []
    for arm, labels in dict.fromkeys((row.arm, row.labels) for row in rows):
        own = [row for row in rows if (row.arm, row.labels) == (arm, labels)]
        draws = list(dict.fromkeys(row.draw for row in own))
        names = list(dict.fromkeys(row.structure for row in own))
        per_draw = [[row for row in own if row.draw == draw] for draw in draws]
        found.append(
            ArmFigures(
                arm=arm,
                labels=labels,
                draws=len(draws),
                metrics={name: summarise(_mean_of_cases(part, name) for part in per_draw) for name in METRICS},
                structures={
                    name: summarise(_mean([row.dice for row in part if row.structure == name]) for part in per_draw)
                    for name in names
                },
                missed=sum(row.status == "missed" for row in own),
                spurious=sum(row.status == "spurious" for row in own),
                rows=len(own),
            )
        )
    return found


def compare_arms(rows: Sequence[Row]) -> list[Comparison]:
    """Every pair of arms with the same number of labels, by the Dice of each draw and test case."""
    found = []
    for labels in dict.fromkeys(row.labels for row in rows):
        values: dict[str, dict[Place, float]] = {}
        for row in rows:
            if row.labels == labels:
                values.setdefault(row.arm, {})[row.draw, row.case, row.structure] = row.dice
        tested = [_paired(values, first, second) for first, second in itertools.combinations(values, 2)]
        tested = [item for item in tested if item[2].pairs]
        corrected = holm([test.p for *_, test in tested])
        for (first, second, test), p_corrected in zip(tested, corrected, strict=True):
            found.append(Comparison(first, second, labels, test.pairs, 100 * test.mean, test.p, p_corrected))
    return found


def _paired(
    values: Mapping[str, Mapping[Place, float]], first: str, second: str
) -> tuple[str, str, PairedTest]:
    differences: dict[tuple[int, str], list[float]] = {}
    for (draw, case, _), (mine, other) in overlap_pairs(values[first], values[second]).items():
        differences.setdefault((draw, case), []).append(mine - other)
    return first, second, paired_test(map(_mean, differences.values()))


def _mean_of_cases(rows: Sequence[Row], metric: str) -> float:
    cases = dict.fromkeys(row.case for row in rows)
    return _mean([_mean([getattr(row, metric) for row in rows if row.case == case]) for case in cases])


def _mean(values: Iterable[float]) -> float:
    return summarise(values).mean
