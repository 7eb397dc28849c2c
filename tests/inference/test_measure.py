"""Volumes, agreement and flags, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.inference.ensemble import Prediction
from ctnet_nnunet.inference.measure import as_csv, measure

A, B = Structure("a", (1,)), Structure("b, the second", (2,))


def block(start: int, end: int) -> np.ndarray:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[start:end, 2:6, 2:6] = 1
    return labels


def test_volume_spread_and_agreement() -> None:
    prediction = Prediction(block(2, 6), {}, [block(2, 6), block(4, 8)], 0.008, {1: 0.25})
    first, second = measure("c", prediction, [A, B], (0.5, 1.0, 2.0))
    assert first.volume_ml == pytest.approx(64 / 1000)
    assert first.fold_sd_ml == 0.0
    assert first.fold_dice == pytest.approx(0.5)
    assert first.entropy == 0.25
    assert first.flags == ("folds disagree",)
    assert (second.volume_ml, second.flags) == (0.0, ("empty",))
    assert math.isnan(second.fold_dice)
    lines = as_csv([first, second]).splitlines()
    assert lines[1] == "c,a,0.064,0,0.5,0.25,folds disagree"
    assert lines[2] == 'c,"b, the second",0,0,,,empty'


def test_folds_of_different_size() -> None:
    prediction = Prediction(block(2, 6), {}, [block(2, 6), block(2, 7)], 0.008, {})
    (item,) = measure("c", prediction, [A], (1.0, 1.0, 1.0))
    assert item.fold_sd_ml == pytest.approx(np.std([64 * 0.008, 80 * 0.008], ddof=1))
    assert item.fold_dice == pytest.approx(2 * 64 / 144)
    assert item.flags == ()


@pytest.mark.parametrize(("start", "end", "flagged"), [(0, 4, True), (6, 10, True), (1, 9, False)])
def test_the_border_of_the_scan(start: int, end: int, flagged: bool) -> None:
    labels = block(start, end)
    (item,) = measure("c", Prediction(labels, {}, [labels, labels], 1.0, {}), [A], (1.0, 1.0, 1.0))
    assert item.flags == (("touches the border of the scan",) if flagged else ())


def test_a_single_slice_has_no_border_across_it() -> None:
    labels = block(2, 6)[3:4]
    (item,) = measure("c", Prediction(labels, {}, [labels], 1.0, {}), [A], (1.0, 1.0, 1.0))
    assert item.flags == ()
