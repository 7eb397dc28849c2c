"""Slices as radiologists look at them: the sides are right whatever the orientation of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.evaluation.cases import LabelScheme
from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.evaluation.pictures import contour_figure, svg_uri
from ctnet_nnunet.evaluation.views import View, cut, largest_slice, read_view, shown_planes

NUCLEUS = Structure("nucleus", (1,))
SCHEME = LabelScheme((NUCLEUS,), ignore=None, file_ending=".nii.gz")

# One bright voxel far to the patient's left, one far to the front, one far up (in LPS mm from the centre).
LEFT, FRONT, UP = (6.0, 0.0, 0.0), (0.0, -6.0, 0.0), (0.0, 0.0, 6.0)


def _view(folder: Path, orientation: str) -> View:
    """A marked scan stored in ``orientation``, with a nucleus at its centre."""
    scan = sitk.Image(17, 17, 17, sitk.sitkFloat32)
    scan.SetOrigin([-8.0] * 3)
    labels = sitk.Image(scan.GetSize(), sitk.sitkUInt8)
    labels.CopyInformation(scan)
    for value, point in ((10.0, LEFT), (20.0, FRONT), (30.0, UP)):
        scan[scan.TransformPhysicalPointToIndex(point)] = value
    for x in range(6, 10):
        labels[x, 8, 8] = 1
    files = []
    for name, image in (("scan", scan), ("truth", labels), ("prediction", labels)):
        path = folder / f"{name}.nii.gz"
        sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))
        files.append(path)
    return read_view(files[0], files[1], files[2], SCHEME)


def _place(picture: np.ndarray, value: float) -> tuple[int, int]:
    row, column = np.argwhere(np.isclose(picture, value))[0]
    return int(row), int(column)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RPI", "ASL", "SAR", "PIR"])
def test_sides_are_right_in_every_orientation(tmp_path: Path, orientation: str) -> None:
    view = _view(tmp_path, orientation)
    axial, coronal, sagittal = (cut(view, [NUCLEUS], NUCLEUS, plane) for plane in range(3))

    assert axial.letters == ("R", "L", "A", "P")
    assert coronal.letters == ("R", "L", "S", "I")
    assert sagittal.letters == ("A", "P", "S", "I")
    # The marks lie on the sides that the letters say: left on the right of the picture, front and up on top.
    assert _place(axial.scan, 10.0) == (8, 14)
    assert _place(axial.scan, 20.0) == (2, 8)
    assert _place(coronal.scan, 30.0) == (2, 8)


def test_oblique_scans_keep_the_nearest_letters(tmp_path: Path) -> None:
    angle = np.deg2rad(25.0)
    image = sitk.Image(9, 9, 9, sitk.sitkUInt8)
    image.SetDirection([np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1])
    image[4, 4, 4] = 1
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(image, str(path))

    view = read_view(path, path, path, SCHEME)

    assert cut(view, [NUCLEUS], NUCLEUS, 0).letters == ("R", "L", "A", "P")


def _plain_view(truth: np.ndarray, prediction: np.ndarray) -> View:
    return View(truth.astype(np.float32), truth, prediction, (1.0, 1.0, 1.0), np.eye(3)[::-1])


def test_largest_slice_of_the_truth_or_else_of_the_prediction() -> None:
    labels = np.zeros((6, 6, 6), dtype=np.int64)
    labels[1, 1, 1] = 1
    labels[4, 1:3, 1:4] = 1
    empty = np.zeros_like(labels)

    assert largest_slice(_plain_view(labels, empty), NUCLEUS, 0) == 4
    assert largest_slice(_plain_view(empty, labels), NUCLEUS, 0) == 4
    assert largest_slice(_plain_view(empty, empty), NUCLEUS, 0) == 3


def test_a_single_slice_has_one_plane() -> None:
    labels = np.zeros((1, 6, 6), dtype=np.int64)
    labels[0, 2:4, 2:4] = 1

    view = _plain_view(labels, labels)

    assert shown_planes(view) == (0,)
    assert svg_uri(contour_figure(view, [NUCLEUS], NUCLEUS)).startswith("data:image/svg+xml;base64,")


def test_pictures_are_the_same_bytes_each_time() -> None:
    labels = np.zeros((6, 8, 8), dtype=np.int64)
    labels[2:4, 2:6, 2:6] = 1
    view = _plain_view(labels, np.roll(labels, 1, axis=1))

    first, second = (svg_uri(contour_figure(view, [NUCLEUS], NUCLEUS)) for _ in range(2))

    assert first == second
