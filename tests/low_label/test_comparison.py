"""Means, counts and tests of the tables, against numbers worked out by hand or by scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ctnet_nnunet.evaluation.statistics import holm
from ctnet_nnunet.low_label.comparison import arm_figures, compare_arms
from ctnet_nnunet.low_label.scores import Row, as_csv


def row(arm: str, draw: int, case: str, structure: str, dice: float, labels: int = 1, status: str = "ok") -> Row:
    distance = 1.0 if status == "ok" else math.nan
    return Row(arm, labels, draw, case, structure, dice, dice / (2 - dice), distance, distance / 2, 1.0, 1.0, status)


def test_mean_over_structures_then_cases_then_draws() -> None:
    rows = [
        row("a", 1, "x", "left", 0.8), row("a", 1, "x", "right", 0.6), row("a", 1, "y", "left", 0.9),
        row("a", 1, "y", "right", math.nan, status="absent"),
        row("a", 2, "x", "left", 0.4), row("a", 2, "x", "right", 0.0, status="missed"),
        row("a", 2, "y", "left", 0.6), row("a", 2, "y", "right", 0.0, status="spurious"),
    ]  # fmt: skip
    (figures,) = arm_figures(rows)
    first, second = (0.7 + 0.9) / 2, (0.2 + 0.3) / 2
    assert figures.metrics["dice"].mean == pytest.approx((first + second) / 2)
    assert figures.metrics["dice"].sd == pytest.approx(np.std([first, second], ddof=1))
    assert figures.structures["left"].mean == pytest.approx((0.85 + 0.5) / 2)
    assert figures.structures["right"].mean == pytest.approx((0.6 + 0.0) / 2)
    assert figures.metrics["hd95_mm"].mean == pytest.approx(1.0)
    assert (figures.draws, figures.missed, figures.spurious, figures.rows) == (2, 1, 1, 8)


def test_comparisons_pair_draws_and_cases_and_agree_with_scipy() -> None:
    random = np.random.RandomState(0)
    keys = list(itertools.product((1, 2, 3), "uvwx"))
    values = {arm: dict(zip(keys, random.uniform(0.5, 0.9, 12), strict=True)) for arm in "abc"}
    rows = [row(arm, draw, case, "s", dice) for arm, table in values.items() for (draw, case), dice in table.items()]
    rows += [row("a", 1, "u", "s", 0.3, labels=5), row("full", 1, "u", "s", 0.9, labels=15)]
    found = compare_arms(rows)
    assert [(item.first, item.second) for item in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for item in found:
        differences = [values[item.first][key] - values[item.second][key] for key in keys]
        assert item.pairs == 12
        assert item.difference == pytest.approx(100 * np.mean(differences))
        assert item.p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert [item.p_corrected for item in found] == pytest.approx(holm([item.p for item in found]))


def test_a_structure_that_one_arm_rightly_leaves_out_counts() -> None:
    """The arm with false positives is ahead where the structure is, and would win if the other places did not count."""
    rows = [row(arm, draw, f"lesion{i}", "lesion", dice) for draw in (1, 2, 3) for i in range(6)
            for arm, dice in (("a", 0.72), ("b", 0.70))]  # fmt: skip
    for draw in (1, 2, 3):
        for i in range(6):
            rows.append(row("a", draw, f"none{i}", "lesion", 0.0, status="spurious"))
            rows.append(row("b", draw, f"none{i}", "lesion", math.nan, status="absent"))
            rows += [row(arm, draw, f"neither{i}", "lesion", math.nan, status="absent") for arm in "ab"]
    (comparison,) = compare_arms(rows)
    assert comparison.pairs == 36
    assert comparison.difference == pytest.approx(100 * (18 * 0.02 - 18) / 36)


def test_a_draw_that_only_one_arm_has_is_no_pair() -> None:
    rows = [row("a", draw, case, "s", 0.5 + 0.01 * draw) for draw in (1, 2) for case in "uvwx"]
    rows += [row("b", 1, case, "s", 0.4) for case in "uvwx"]
    (found,) = compare_arms(rows)
    assert found.pairs == 4
    assert found.difference == pytest.approx(11.0)


def test_equal_arms_do_not_differ() -> None:
    rows = [row(arm, 1, case, "s", 0.5) for arm in "ab" for case in "uvw"]
    (found,) = compare_arms(rows)
    assert (found.difference, found.p, found.p_corrected) == (0.0, 1.0, 1.0)


def test_csv_leaves_undefined_values_empty() -> None:
    text = as_csv([row("a", 1, "x", "left", 0.5), row("a", 1, "x", "right", 0.0, status="missed")])
    lines = text.splitlines()
    assert lines[0] == "arm,labels,draw,case,structure,dice,jaccard,hd95_mm,asd_mm,truth_ml,prediction_ml,status"
    assert lines[1] == "a,1,1,x,left,0.5,0.333333,1,0.5,1,1,ok"
    assert lines[2] == "a,1,1,x,right,0,0,,,1,1,missed"
