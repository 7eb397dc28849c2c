"""Mean ± standard deviation over cases, with the number of cases that had a value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ctnet_nnunet.evaluation.metrics import Scores

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
