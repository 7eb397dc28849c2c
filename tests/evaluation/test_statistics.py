"""Means over cases leave out what is not defined, and say over how many cases they are."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy.stats import wilcoxon

from ctnet_nnunet.evaluation.metrics import Scores
from ctnet_nnunet.evaluation.statistics import (
    PairedTest,
    holm,
    mean_over_all,
    over_cases,
    over_structures,
    overlap_pairs,
    paired_test,
    summarise,
)


def _scores(dice: float, hd95: float = 1.0) -> Scores:
    return Scores(dice, hd95, 1.0, 0.9, 1.0, 1.0)


def test_summary_agrees_with_the_standard_library() -> None:
    values = [0.91, 0.84, 0.77, 0.95]

    summary = summarise(values)

    assert (summary.mean, summary.sd, summary.n) == (
        pytest.approx(statistics.mean(values)), pytest.approx(statistics.stdev(values)), 4,
    )  # fmt: skip


def test_undefined_values_are_left_out() -> None:
    summary = summarise([0.5, math.nan, 0.7])

    assert (summary.mean, summary.n) == (pytest.approx(0.6), 2)


def test_a_rightly_empty_prediction_counts_where_the_other_is_not() -> None:
    first, second = {"a": math.nan, "b": 0.0, "c": 0.7, "alone": 0.5}, {"a": 0.0, "b": math.nan, "c": 0.0}
    assert overlap_pairs(first, second) == {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.7, 0.0)}
    (pair,) = overlap_pairs({"a": math.nan}, {"a": math.nan}).values()
    assert all(map(math.isnan, pair))


@pytest.mark.parametrize(
    ("values", "text"), [([], "–"), ([math.nan], "–"), ([0.5], "0.500"), ([0.4, 0.6], "0.500 ± 0.141")]
)
def test_text(values: list[float], text: str) -> None:
    assert summarise(values).text(3) == text


def test_tables() -> None:
    table = {
        "a": {"left": _scores(0.8), "right": _scores(0.6)},
        "b": {"left": _scores(0.6, 3.0), "right": _scores(0.0, math.nan)},
    }

    assert over_cases(table, "left", "dice").mean == pytest.approx(0.7)
    assert over_cases(table, "right", "hd95_mm").n == 1
    assert over_structures(table, "a", "dice").mean == pytest.approx(0.7)
    assert mean_over_all(table, "dice").mean == pytest.approx((0.7 + 0.3) / 2)


def test_holm_by_hand() -> None:
    # Sorted: 0.005·4, 0.01·3, 0.03·2, 0.04·1, each at least as large as the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_test_by_hand_and_by_scipy() -> None:
    # Ranks of |d|: 1, 2, 3, 4, 5; the negative ones are 2 and 1.
    test = paired_test([0.01, -0.02, 0.03, 0.04, 0.05, math.nan])
    assert test.pairs == 5
    assert test.mean == pytest.approx(0.022)
    assert test.median == pytest.approx(0.03)
    assert test.effect == pytest.approx((1 - 2 + 3 + 4 + 5) / 15)
    assert test.p == pytest.approx(wilcoxon([0.01, -0.02, 0.03, 0.04, 0.05]).pvalue)
    assert paired_test([0.0, 0.0]) == PairedTest(2, 0.0, 0.0, 1.0, 0.0)
    assert paired_test([math.nan]).pairs == 0
    assert paired_test([0.1, 0.2, 0.3]).effect == 1.0
