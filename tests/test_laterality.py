"""Which labels are each other's mirror image, and which array axis runs from left to right."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.laterality import left_right_axis, sided_labels, swap_table

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
#: Every order and flip of the axes, as DICOM names them: 6 orders of (L|R, P|A, S|I), 8 flips each.
ORIENTATIONS = ["".join(code) for axes in permutations(["LR", "PA", "SI"]) for code in product(*axes)]


@pytest.mark.parametrize("pair", [
    ("left thalamus", "right thalamus"), ("Left-Thalamus", "Right-Thalamus"), ("LEFT_THALAMUS", "RIGHT_THALAMUS"),
    ("thalamus_left", "thalamus_right"), ("thalamus_L", "thalamus_R"), ("thalamus L", "thalamus R"),
    ("L thalamus", "R thalamus"), ("l-thalamus", "r-thalamus"), ("thalamusLeft", "thalamusRight"),
    ("leftThalamus", "rightThalamus"), ("LThalamus", "RThalamus"), ("thalamusL", "thalamusR"),
    ("lThalamus", "rThalamus"),
    ("lh_thalamus", "rh_thalamus"), ("ctx-lh-insula", "ctx-rh-insula"), ("Lt Kidney", "Rt Kidney"),
    ("thalamus (left)", "thalamus (right)"), ("thalamus.sin", "thalamus.dex"), ("left", "right"), ("L", "R"),
    ("leftthalamus", "rightthalamus"), ("thalamusleft", "thalamusright"), ("cleft_left", "cleft_right"),
    ("lung_upper_lobe_left", "lung_upper_lobe_right"), ("Left hippocampus CA1", "Right hippocampus CA1"),
])  # fmt: skip
def test_names_that_pair_up(pair: tuple[str, str]) -> None:
    found = sided_labels({pair[0]: 3, "spine": 1, pair[1]: 2})
    assert found.pairs == ((3, 2),)  # left first, whatever the values
    assert found.unpaired == ()
    assert found.any


@pytest.mark.parametrize("name", [
    "thalamus", "liver", "lateral ventricle", "Brain-Stem", "4th-Ventricle", "rectum", "lung", "caudate", "cleft",
    "bright spot", "Lobe", "T2star", "tumour 2", "rhomboid", "cerebellum", "",
])  # fmt: skip
def test_names_without_a_side(name: str) -> None:
    assert not sided_labels({name: 1, "other": 2}).any


@pytest.mark.parametrize("labels", [
    {"left thalamus": 1}, {"left thalamus": 1, "right putamen": 2}, {"left thalamus": 1, "thalamus right": 2},
    {"vertebra L1": 1, "vertebra T1": 2}, {"left kidney": 1, "kidney": 2},
])  # fmt: skip
def test_a_side_without_a_partner(labels: dict[str, int]) -> None:
    found = sided_labels(labels)
    sided = {name for name in labels if name not in ("kidney", "vertebra T1")}
    assert found.pairs == ()
    assert set(found.unpaired) == sided
    assert found.any


def test_names_that_are_the_same_but_for_their_spelling_are_not_paired_by_guess() -> None:
    found = sided_labels({"left x": 1, "lh_x": 2, "right x": 3, "rh_x": 4})
    assert found.pairs == ()
    assert set(found.unpaired) == {"left x", "lh_x", "right x", "rh_x"}


def test_many_pairs_and_middle_structures() -> None:
    found = sided_labels({"brain stem": 1, "left a": 2, "right b": 3, "left b": 4, "right a": 5, "left c": 6})
    assert found.pairs == ((2, 5), (4, 3))
    assert found.unpaired == ("left c",)


def test_regions_of_one_label_pair_up_and_regions_of_several_do_not() -> None:
    assert sided_labels({"left a": [1], "right a": [2], "whole": [1, 2]}).pairs == ((1, 2),)
    found = sided_labels({"left": [1, 3], "right": [2, 4]})
    assert found.pairs == ()
    assert set(found.unpaired) == {"left", "right"}
    assert sided_labels({"whole": (1, 2, 3), "core": (2,)}).any is False


def test_the_table_swaps_and_swaps_back() -> None:
    table = swap_table([(2, 5), (4, 3)], 6)
    assert table.tolist() == [0, 1, 5, 4, 3, 2, 6]
    assert np.array_equal(table[table], np.arange(7))


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_axis_in_every_orientation(orientation: str) -> None:
    """A voxel that lies far to the patient's left moves along the axis that the function names, and along no other."""
    image = sitk.Image(4, 6, 8, sitk.sitkUInt8)
    image.SetDirection(IDENTITY)
    image[3, 1, 2] = 1  # the last index of +x, which is left in LPS
    oriented = sitk.DICOMOrient(image, orientation)
    axis = left_right_axis(oriented.GetDirection())
    array = sitk.GetArrayFromImage(oriented)
    assert axis is not None
    assert array.shape[axis] == 4
    assert np.argwhere(array)[0][axis] in (0, 3)


def rotated(degrees: float, axis: int) -> tuple[float, ...]:
    angle = np.deg2rad(degrees)
    first, second = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return tuple(matrix.ravel())


@pytest.mark.parametrize(("degrees", "axis", "expected"), [
    (0, 2, 2), (20, 2, 2), (-35, 1, 2), (90, 2, 1), (100, 2, 1), (60, 2, 1), (90, 1, 0), (180, 2, 2), (89, 0, 2),
])  # fmt: skip
def test_a_tilted_scan_has_the_axis_that_is_closest(degrees: float, axis: int, expected: int) -> None:
    assert left_right_axis(rotated(degrees, axis)) == expected


@pytest.mark.parametrize(("degrees", "axis"), [(45, 2), (44, 1), (-46, 2), (135, 1)])
def test_a_scan_between_two_axes_has_none(degrees: float, axis: int) -> None:
    assert left_right_axis(rotated(degrees, axis)) is None


@pytest.mark.parametrize("direction", [(1.0, 0.0, 0.0, 1.0), (), tuple([3**-0.5] * 9), tuple([0.0] * 9)])
def test_no_axis_in_2d_or_without_a_direction(direction: tuple[float, ...]) -> None:
    assert left_right_axis(direction) is None
