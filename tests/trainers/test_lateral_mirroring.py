"""A mirrored scan gets mirrored labels, or is not mirrored: the transform, the decision, its place, its axis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctnet_nnunet.laterality import SidedLabels, left_right_axis
from ctnet_nnunet.trainers.lateral_mirroring import (
    LateralMirrorTransform,
    MirrorPlan,
    direction_of,
    plan_mirroring,
    with_lateral_mirroring,
)

LEFT_IS_X = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
LEFT_IS_Z = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
OBLIQUE = (0.7, -0.7, 0.0, 0.7, 0.7, 0.0, 0.0, 0.0, 1.0)
PAIRED = SidedLabels(((1, 2), (4, 3)), ())
UNPAIRED = SidedLabels(((1, 2),), ("left thumb",))
NONE = SidedLabels((), ())
LEFT, RIGHT, MIDDLE, IGNORE, PADDING = 1, 2, 5, 9, -1


def volume() -> tuple[torch.Tensor, torch.Tensor]:
    """An image (2, 3, 4, 6) with all voxels different, and labels (1, 3, 4, 6) of every kind."""
    image = torch.arange(144.0).view(2, 3, 4, 6)
    labels = torch.zeros(1, 3, 4, 6, dtype=torch.int16)
    labels[0, 0, 1, 0], labels[0, 1, 2, 5], labels[0, 2, 3, 1] = LEFT, RIGHT, MIDDLE
    labels[0, 2, 0, 2], labels[0, 0, 0, 4], labels[0, 1, 1, 1], labels[0, 1, 1, 4] = IGNORE, PADDING, 3, 4
    return image, labels


def mirrored(axis: int, image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    made = LateralMirrorTransform(axis, PAIRED.pairs).apply({"image": image, "segmentation": labels}, axes=[axis])
    return made["image"], made["segmentation"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_label_of_every_voxel_follows(axis: int) -> None:
    image, labels = volume()
    flipped_image, flipped = mirrored(axis, image, labels)
    swapped = {LEFT: RIGHT, RIGHT: LEFT, 3: 4, 4: 3}
    for position in product(*(range(size) for size in labels.shape[1:])):
        target = list(position)
        target[axis] = labels.shape[1 + axis] - 1 - target[axis]
        before, after = int(labels[(0, *position)]), int(flipped[(0, *target)])
        assert after == swapped.get(before, before)
        assert torch.equal(flipped_image[(slice(None), *target)], image[(slice(None), *position)])
    assert flipped.dtype == labels.dtype


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_twice_is_the_identity(axis: int) -> None:
    image, labels = volume()
    again = mirrored(axis, *mirrored(axis, image, labels))
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], labels)


def test_not_mirrored_is_not_swapped() -> None:
    image, labels = volume()
    made = LateralMirrorTransform(2, PAIRED.pairs).apply({"image": image, "segmentation": labels}, axes=[])
    assert torch.equal(made["segmentation"], labels)
    assert torch.equal(made["image"], image)


def test_the_labels_of_a_previous_stage_are_swapped_too() -> None:
    _, labels = volume()
    both = torch.cat([labels, labels.flip(1)])
    _, flipped = mirrored(2, torch.zeros(1, 3, 4, 6), both)
    assert torch.equal(flipped[1], mirrored(2, torch.zeros(1, 3, 4, 6), labels.flip(1))[1][0])


def test_it_happens_to_half_of_the_samples() -> None:
    torch.manual_seed(0)
    transform = LateralMirrorTransform(2, PAIRED.pairs)
    image, labels = volume()
    changed = 0
    for _ in range(400):
        made = transform(image=image, segmentation=labels)
        moved = not torch.equal(made["image"], image)
        assert moved == (not torch.equal(made["segmentation"], labels))
        changed += moved
    assert 150 < changed < 250


@pytest.mark.parametrize(("sides", "directions", "plain", "swap", "reason"), [
    (NONE, [OBLIQUE, None], (0, 1, 2), None, ""),
    (PAIRED, [LEFT_IS_X] * 3, (0, 1), 2, "swaps 2 pairs"),
    (UNPAIRED, [LEFT_IS_X], (0, 1), None, "left thumb has a side and no partner"),
    (PAIRED, [LEFT_IS_X, LEFT_IS_Z], (), None, "differ in their orientation"),
    (UNPAIRED, [LEFT_IS_X, LEFT_IS_Z], (), None, "differ in their orientation"),
    (PAIRED, [LEFT_IS_X, None], (), None, "no usable orientation"),
    (PAIRED, [OBLIQUE], (), None, "no usable orientation"),
    (PAIRED, [LEFT_IS_Z], (1, 2), 0, "patch axis 0"),
])  # fmt: skip
def test_the_decision(
    sides: SidedLabels, directions: list[Any], plain: tuple[int, ...], swap: int | None, reason: str
) -> None:
    found = plan_mirroring((0, 1, 2), 3, sides, (0, 1, 2), lambda: directions)
    assert (found.plain_axes, found.swap_axis) == (plain, swap)
    assert (reason in found.reason) if reason else found.reason == ""


def test_without_sides_no_case_is_opened() -> None:
    def opened() -> list[None]:
        raise AssertionError("the cases' orientation does not matter here")

    assert plan_mirroring((0, 1), 2, NONE, (0, 1, 2), opened) == MirrorPlan((0, 1), None, "")


@pytest.mark.parametrize(("direction", "transpose", "plain", "swap"), [
    (LEFT_IS_X, (0, 1, 2), (0,), 1), (LEFT_IS_X, (0, 2, 1), (1,), 0),
    (LEFT_IS_X, (2, 0, 1), (0, 1), None),  # slices are sagittal: no patch axis runs from left to right
    (LEFT_IS_Z, (0, 1, 2), (0, 1), None), (LEFT_IS_Z, (2, 0, 1), (1,), 0),
])  # fmt: skip
def test_a_2d_patch_lies_in_the_last_two_axes(
    direction: Sequence[float], transpose: tuple[int, ...], plain: tuple[int, ...], swap: int | None
) -> None:
    found = plan_mirroring((0, 1), 2, PAIRED, transpose, lambda: [direction])
    assert (found.plain_axes, found.swap_axis) == (plain, swap)
    assert found.reason


def test_axes_that_stock_does_not_mirror_stay_out() -> None:
    assert plan_mirroring((0, 1), 3, PAIRED, (0, 1, 2), lambda: [LEFT_IS_X]).swap_axis is None
    assert plan_mirroring((), 3, PAIRED, (0, 1, 2), lambda: [LEFT_IS_X]).plain_axes == ()


@pytest.mark.parametrize("transpose", list(permutations(range(3))))
@pytest.mark.parametrize("direction", [LEFT_IS_X, LEFT_IS_Z])
def test_the_axis_goes_through_transpose_forward(transpose: tuple[int, ...], direction: Sequence[float]) -> None:
    """Mirroring the transposed volume along the planned axis is transposing the volume that was mirrored before."""
    found = plan_mirroring((0, 1, 2), 3, PAIRED, transpose, lambda: [direction])
    array = np.arange(60).reshape(3, 4, 5)
    axis = left_right_axis(direction)
    assert np.array_equal(
        np.flip(array.transpose(transpose), found.swap_axis), np.flip(array, axis).transpose(transpose)
    )
    assert set(found.plain_axes) | {found.swap_axis} == {0, 1, 2}


@pytest.mark.parametrize("mask", [None, [True]])
def test_it_stands_where_stock_mirrors(mask: list[bool] | None) -> None:
    arguments = (np.array([16, 16, 16]), (0.0, 0.0), (1.0, 0.5))
    stock = nnUNetTrainer.get_training_transforms(*arguments, (0, 1, 2), False, use_mask_for_norm=mask)
    place = next(index for index, step in enumerate(stock.transforms) if isinstance(step, MirrorTransform))
    without = nnUNetTrainer.get_training_transforms(*arguments, None, False, use_mask_for_norm=mask)
    ours = with_lateral_mirroring(without, 2, PAIRED.pairs)
    assert type(ours.transforms[place]) is LateralMirrorTransform
    assert [type(step) for step in ours.transforms[:place]] == [type(step) for step in stock.transforms[:place]]
    assert [type(step) for step in ours.transforms[place + 1 :]] == [
        type(step) for step in stock.transforms[place + 1 :]
    ]
    after = ours.transforms[place + 1 :]
    assert any(isinstance(step, RemoveLabelTansform) for step in after)
    assert any(isinstance(step, MaskImageTransform) for step in after) == (mask is not None)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SAL", "ASR", "LSA"])
def test_the_direction_is_found_in_what_each_reader_keeps(reader: type, orientation: str, tmp_path: Path) -> None:
    image = sitk.Image(4, 6, 8, sitk.sitkFloat32)
    image.SetDirection(LEFT_IS_X)
    image.SetSpacing((0.5, 1.0, 2.0))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / "scan_0000.nii.gz"))
    data, properties = reader().read_images([str(tmp_path / "scan_0000.nii.gz")])
    axis = left_right_axis(direction_of(properties))
    assert axis is not None
    assert data.shape[1:][axis] == 4


def test_properties_without_a_direction() -> None:
    assert direction_of({"spacing": (1, 1, 1)}) is None
