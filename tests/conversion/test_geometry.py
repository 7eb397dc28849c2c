"""Grids: turned to RAS without moving a voxel, and told apart as same, noise, turned and other."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.geometry import Relation, compare_grids, resample_to, to_ras
from ctnet_nnunet.orientation import orientation
from tests.conversion.fakes import all_points, scan, values_at


def shifted(image: sitk.Image, millimetres: float) -> sitk.Image:
    moved = sitk.Image(image)
    moved.SetOrigin((image.GetOrigin()[0] + millimetres, *image.GetOrigin()[1:]))
    return moved


@pytest.mark.parametrize(
    ("millimetres", "relation"),
    [(0.0, Relation.SAME), (2e-4, Relation.NOISE), (2e-3, Relation.OTHER), (1.0, Relation.OTHER)],
)
def test_noise_ends_at_a_micrometre(millimetres: float, relation: Relation) -> None:
    assert compare_grids(scan(), shifted(scan(), millimetres))[0] is relation


@pytest.mark.parametrize("letters", ["RAS", "LAS", "PSR", "IPL"])
def test_the_same_grid_stored_in_another_order(letters: str) -> None:
    relation, distance = compare_grids(scan(), sitk.DICOMOrient(scan(), letters))
    assert (relation, distance < 1e-6) == (Relation.TURNED, True)


def test_an_array_flipped_without_its_header_is_not_the_same_grid() -> None:
    lost = sitk.GetImageFromArray(sitk.GetArrayFromImage(scan()))
    lost.SetSpacing(scan().GetSpacing())
    assert compare_grids(scan(), lost)[0] is Relation.OTHER


def test_a_thicker_single_slice_is_another_grid() -> None:
    thin, thick = scan(size=(7, 6, 1)), scan(size=(7, 6, 1))
    thick.SetSpacing((1.0, 1.5, 3.0))
    assert compare_grids(thin, thick)[0] is Relation.OTHER


def test_another_size_is_infinitely_far() -> None:
    assert compare_grids(scan(), scan(size=(7, 6, 4))) == (Relation.OTHER, float("inf"))


def rotation(seed: int) -> np.ndarray:
    """A random rotation, in which no axis needs to be near an axis of the patient."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


@pytest.mark.parametrize("seed", range(20))
def test_turning_an_oblique_scan_moves_no_voxel(seed: int) -> None:
    image = scan(seed)
    image.SetDirection(rotation(seed).ravel().tolist())
    turned = to_ras(image)
    points = all_points(image)
    assert values_at(turned, points) == values_at(image, points)
    assert orientation(turned) == "RAS"


def test_ras_is_nibabels(tmp_path: Path) -> None:
    import nibabel

    sitk.WriteImage(to_ras(scan()), str(tmp_path / "a.nii"))
    loaded = nibabel.load(tmp_path / "a.nii")
    assert nibabel.aff2axcodes(loaded.affine) == ("R", "A", "S")
    assert (np.diag(loaded.affine)[:3] > 0).all()


def test_resampling_onto_the_own_grid_changes_nothing_and_outside_is_the_minimum() -> None:
    image = scan()
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(resample_to(image, image)), sitk.GetArrayFromImage(image), rtol=1e-6
    )
    away = sitk.GetArrayFromImage(resample_to(shifted(image, 500.0), image))
    assert np.unique(away).tolist() == [sitk.GetArrayFromImage(image).min()]


def test_every_axis_order_has_its_own_letters() -> None:
    found = set()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            image = scan()
            image.SetDirection((np.eye(3)[:, list(order)] * signs).ravel().tolist())
            found.add(orientation(image))
    assert len(found) == 48
