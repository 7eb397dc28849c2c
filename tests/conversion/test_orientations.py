"""The safety of sides: every axis order and flip, oblique and negative-cosine scans, from NIfTI and from DICOM.

Each scan is converted by the real sources and compared voxel by voxel at the places in the patient, so a mirrored,
turned or shifted voxel cannot pass.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.sources.dicom import list_dicom
from ctnet_nnunet.conversion.sources.nifti import list_pairs
from tests.conversion.fake_dicom import write_series
from tests.conversion.fakes import all_points, label_like, run, scan, values_at, write
from tests.conversion.test_geometry import rotation

SIZE = (5, 4, 3)


def directions() -> dict[str, np.ndarray]:
    """48 axis orders and flips, 24 obliques, 6 ties between two orders; half of each are left-handed."""
    found = {}
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            name = "a" + "".join(map(str, order)) + "".join("p" if sign > 0 else "m" for sign in signs)
            found[name] = np.eye(3)[:, list(order)] * signs
    assert len(found) == 48
    for seed in range(24):
        found[f"oblique{seed:02d}"] = rotation(seed) * ((1, 1, -1) if seed % 2 else (1, 1, 1))
    for axis in range(3):  # exactly between two orders of axes
        turn = np.eye(3)
        first, second = (a for a in range(3) if a != axis)
        turn[first, first] = turn[first, second] = turn[second, second] = np.sqrt(0.5)
        turn[second, first] = -np.sqrt(0.5)
        for sign in (1, -1):
            found[f"tie{axis}{sign}"] = turn * (1, sign, 1)
    return found


def images() -> dict[str, sitk.Image]:
    made = {}
    for index, (name, direction) in enumerate(directions().items()):
        image = sitk.GetImageFromArray(
            np.random.default_rng(index).permutation(60).reshape(SIZE[::-1]).astype(np.int16)
        )
        image.SetSpacing((0.9, 1.1, 2.3))
        image.SetOrigin((-31.0, 17.0, 53.0))
        image.SetDirection(direction.ravel().tolist())
        made[name] = image
    return made


def labels_of(image: sitk.Image, noise: float = 0.0) -> sitk.Image:
    """A label map on the image's grid, ``noise`` mm off it by rounding."""
    label = sitk.GetImageFromArray((sitk.GetArrayFromImage(image) % 4).astype(np.uint8))
    label.CopyInformation(image)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    turn = np.array([[1, noise / 9, 0], [-noise / 9, 1, 0], [0, 0, 1]])
    label.SetDirection((turn @ direction).ravel().tolist())
    return label


def assert_not_a_voxel_moved(before: sitk.Image, written: Path) -> None:
    import nibabel

    after = sitk.ReadImage(str(written))
    points = all_points(before)
    assert values_at(after, points) == values_at(before, points), written.name
    np.testing.assert_allclose(sorted(all_points(after)), sorted(points), atol=1e-3)
    assert nibabel.aff2axcodes(nibabel.load(written).affine) == ("R", "A", "S"), written.name


@pytest.mark.parametrize("source", ["nifti", "dicom"])
def test_no_voxel_is_mirrored(tmp_path: Path, source: str) -> None:
    made = images()
    for index, (name, image) in enumerate(made.items()):
        write(labels_of(image, 2e-5 * (-1) ** index), tmp_path / f"labels/{name}.nii.gz")
        if source == "nifti":
            write(image, tmp_path / f"images/{name}.nii.gz")
        else:
            write_series(image, tmp_path / f"images/{name}", seed=index)
    if source == "nifti":
        listing = list_pairs(tmp_path / "images", tmp_path / "labels", ["MR"])
    else:
        listing = list_dicom(tmp_path / "images", "*", [], tmp_path / "labels")
    # A series whose slices run against its normal comes in with its last axis reversed; its label map is then turned.
    report = run(listing, tmp_path, reorient=True)
    assert report.refused == {}
    assert len(report.written) == 78
    for name, image in made.items():
        dataset = tmp_path / "Dataset501_Test"
        assert_not_a_voxel_moved(image, dataset / f"imagesTr/{name}_0000.nii.gz")
        assert_not_a_voxel_moved(labels_of(image), dataset / f"labelsTr/{name}.nii.gz")


def test_the_comparison_sees_a_mirrored_image(tmp_path: Path) -> None:
    image = scan()
    mirrored = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[..., ::-1])
    mirrored.CopyInformation(image)
    path = write(sitk.DICOMOrient(mirrored, "RAS"), tmp_path / "m.nii.gz")
    with pytest.raises(AssertionError):
        assert_not_a_voxel_moved(image, path)
    assert_not_a_voxel_moved(
        label_like(image), write(sitk.DICOMOrient(label_like(image), "RAS"), tmp_path / "l.nii.gz")
    )
