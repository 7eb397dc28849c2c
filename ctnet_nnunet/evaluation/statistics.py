"""Mean ± standard deviation over cases with the number that had a value; paired tests and their correction."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

from ctnet_nnunet.evaluation.metrics import Scores

Key = TypeVar("Key", bound=Hashable)
CaseTable = Mapping[str, Mapping[str, Scores]]
"""case → structure name → scores."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n − 1) of the values that are defined."""

    mean: float
    sd: float
    n: int

    def text(self, decimals: int, unit: str = "") -> str:
        """``0.812 ± 0.034``; ``–`` where no case has a value, no ± where only one has."""
        if self.n == 0:
            return "–"
        spread = "" if math.isnan(self.sd) else f" ± {self.sd:.{decimals}f}"
        return f"{self.mean:.{decimals}f}{spread}{unit}"


def summarise(values: Iterable[float]) -> Summary:
    """Mean ± sd of ``values``, with ``nan`` left out."""
    kept = [v for v in values if not math.isnan(v)]
    if not kept:
        return Summary(math.nan, math.nan, 0)
    mean = math.fsum(kept) / len(kept)
    if len(kept) == 1:
        return Summary(mean, math.nan, 1)
    variance = math.fsum((v - mean) ** 2 for v in kept) / (len(kept) - 1)
    return Summary(mean, math.sqrt(variance), len(kept))


def over_cases(table: CaseTable, structure: str, metric: str) -> Summary:
    """One metric (a field of :class:`Scores`) of one structure over all cases."""
    return summarise(getattr(scores[structure], metric) for scores in table.values())


def over_structures(table: CaseTable, case: str, metric: str) -> Summary:
    """One metric of one case over all structures."""
    return summarise(getattr(scores, metric) for scores in table[case].values())


def mean_over_all(table: CaseTable, metric: str) -> Summary:
    """Each case's mean over its structures, then mean ± sd over the cases."""
    return summarise(over_structures(table, case, metric).mean for case in table)


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of paired differences.

    Attributes:
        pairs: How many differences were defined.
        mean, median: Of the differences.
        p: Two-sided; 1 where no pair differs.
        effect: Matched-pairs rank-biserial correlation (Kerby, Comprehensive Psychology 3:1, 2014), from −1 (every
            difference negative) to 1; 0 where no pair differs.
    """

    pairs: int
    mean: float
    median: float
    p: float
    effect: float


def paired_test(differences: Iterable[float]) -> PairedTest:
    """Test paired differences; those that are ``nan`` are left out."""
    kept = np.array([value for value in differences if not math.isnan(value)])
    if not len(kept):
        return PairedTest(0, math.nan, math.nan, math.nan, math.nan)
    mean, median = float(kept.mean()), float(np.median(kept))
    changed = kept[kept != 0]
    if not len(changed):
        return PairedTest(len(kept), mean, median, 1.0, 0.0)
    ranks = stats.rankdata(np.abs(changed))
    effect = float((ranks * np.sign(changed)).sum() / ranks.sum())
    return PairedTest(len(kept), mean, median, float(stats.wilcoxon(kept).pvalue), effect)


def overlap_pairs(first: Mapping[Key, float], second: Mapping[Key, float]) -> dict[Key, tuple[float, float]]:
    """Both methods' Dice, Jaccard or NSD of each (case, structure) that both have, for a paired test.

    Where the reference is empty, an empty prediction is right and has no value, and another one has 0. If just one of
    the two is right, it counts as 1: left out, the pair would hide what makes the methods differ.
    """
    pairs = {key: (first[key], second[key]) for key in first if key in second}
    return {
        key: (1.0 if math.isnan(a) and not math.isnan(b) else a, 1.0 if math.isnan(b) and not math.isnan(a) else b)
        for key, (a, b) in pairs.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand J Statist 6:65-70, 1979): the least times n, the next times n − 1, ….

    Corrected values keep the order of the raw ones and end at 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
