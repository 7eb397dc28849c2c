"""Label maps: any numbers in, consecutive labels out, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctnet_nnunet.conversion.labels import (
    LabelMap,
    as_integers,
    label_map_from_values,
    make_label_map,
    numbers_in,
    read_label_map,
)
from ctnet_nnunet.errors import DataError


def test_consecutive_in_the_order_given_and_back() -> None:
    labels = make_label_map([(49, "right thalamus"), (10, "left thalamus"), (255, "lesion"), (4, "background")])
    assert labels.labels == {"background": 0, "right thalamus": 1, "left thalamus": 2, "lesion": 3}
    assert labels.apply(np.array([[0, 10], [49, 255]]), "x").tolist() == [[0, 2], [1, 3]]
    assert labels.inverse() == {"0": [4], "1": [49], "2": [10], "3": [255]}


def test_two_numbers_become_one_label() -> None:
    labels = make_label_map([(2, "white matter"), (41, "white matter"), (3, "cortex")])
    assert labels.apply(np.array([41, 3, 2]), "x").tolist() == [1, 2, 1]
    assert labels.inverse()["1"] == [2, 41]


def test_ignore_comes_last() -> None:
    assert make_label_map([(1, "ignore"), (2, "liver")]).labels == {"background": 0, "liver": 1, "ignore": 2}


def test_an_unlisted_number_is_named_with_its_place() -> None:
    labels = make_label_map([(1, "liver")])
    with pytest.raises(DataError, match=r"scan\.nii: holds the number 77 \(2 voxels\)"):
        labels.apply(np.array([1, 77, 77, 0]), "scan.nii")
    lenient = make_label_map([(1, "liver")], others_are_background=True)
    assert lenient.apply(np.array([1, 77, -3, 0]), "scan.nii").tolist() == [1, 0, 0, 0]


def test_from_values_alone() -> None:
    assert label_map_from_values([255, 0, 7]) == LabelMap(("label_7", "label_255"), {7: 1, 255: 2})


def test_many_labels_need_two_bytes() -> None:
    labels = label_map_from_values(range(1, 301))
    mapped = labels.apply(np.array([300, 1]), "x")
    assert (mapped.dtype, mapped.tolist()) == (np.uint16, [300, 1])


@pytest.mark.parametrize(
    "text",
    [
        "number,name\n10,left\n49,right\n",
        "10,left\n49,right\n",
        "﻿value;name\n10;left\n\n49;right\n",
        "# comment\n10\tleft\n49\tright\n",
    ],
)
def test_tables_as_they_come(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.csv").write_text(text, encoding="utf-8")
    assert read_label_map(str(tmp_path / "map.csv")).targets == {10: 1, 49: 2}


def test_from_text_and_from_dataset_json(tmp_path: Path) -> None:
    assert read_label_map("10=left thalamus,49=right thalamus").names == ("left thalamus", "right thalamus")
    for number, content in enumerate(
        ('{"labels": {"background": 0, "a": 1, "b": 2}}', '{"labels": {"0": "background", "1": "a", "2": "b"}}')
    ):
        file = tmp_path / f"{number}.json"
        file.write_text(content)
        assert read_label_map(str(file)).labels == {"background": 0, "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1=a,1=b", "both 'a' and 'b'"),
        ("x=a", "'x' is no integer"),
        ("1=a,2", "not VALUE=NAME"),
        ("1=background", "no label besides background"),
        ("nowhere.csv", "cannot be read"),
        ("nowhere.json", "no usable labels"),
    ],
)
def test_unusable_maps(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_label_map(text)


def test_floats_that_are_integers_are_rounded_and_said() -> None:
    array, rounded = as_integers(np.array([0.0, 1.0004, 255.0], np.float32), "x")
    assert (array.tolist(), rounded) == ([0, 1, 255], True)
    assert as_integers(np.array([0.0, 3.0]), "x")[1] is False


@pytest.mark.parametrize("bad", [0.37, np.nan, np.inf, 1e12])
def test_fractions_and_worse_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"scan\.nii"):
        as_integers(np.array([0.0, bad]), "scan.nii")


def test_counts_by_number() -> None:
    assert numbers_in(np.array([-2, 0, 0, 5]), "x") == {-2: 1, 0: 2, 5: 1}
    with pytest.raises(DataError, match="no label map"):
        numbers_in(np.array([0, 1 << 30]), "x")
