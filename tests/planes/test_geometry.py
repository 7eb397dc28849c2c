"""Lines, heatmaps and locations against hand-made phantoms, brute force and the symmetries of space."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.geometry import (
    Plane,
    disagreement,
    intersection,
    location_direction,
    plane_from_dicom,
    planes_of_affine,
    planes_of_grid,
    slice_locations,
)
from tests.planes.oblique import moved, plane, rotation

AXIAL = plane_from_dicom((0, 0, 0), (1, 0, 0, 0, 1, 0), (2.0, 2.0))
SIGMA = 7.56


def guest_at(normal: tuple[float, float, float], point: tuple[float, float, float]) -> Plane:
    """A plane through ``point`` with the unit vector along ``normal``."""
    n = np.array(normal) / np.linalg.norm(normal)
    x = np.cross(n, [0.3, 0.5, 0.81])
    x /= np.linalg.norm(x)
    return plane_from_dicom(point, [*x, *np.cross(n, x)], (1.0, 1.0))


def test_a_sagittal_guest_at_10_mm_is_column_5_of_an_axial_host_of_2_mm() -> None:
    line = intersection(AXIAL, guest_at((1, 0, 0), (10, 3, 4)))
    heat = line.heatmap((12, 16), SIGMA)
    assert np.allclose(np.abs(line.distance((12, 16))), 2.0 * np.abs(np.arange(16) - 5))
    assert heat[:, 5] == pytest.approx(1.0)  # 0-based: a grid that starts at 1 would put it at column 4
    assert heat[:, 7] == pytest.approx(math.exp(-(4.0**2) / (2 * SIGMA**2)))


def test_a_line_along_the_image_rows_is_drawn_as_any_other() -> None:
    heat = intersection(AXIAL, guest_at((0, 1, 0), (0, 8, 0))).heatmap((12, 16), SIGMA)
    assert (heat.argmax(0) == 4).all() and heat[4] == pytest.approx(1.0)


def test_a_guest_turned_by_45_degrees_has_slope_1() -> None:
    heat = intersection(AXIAL, guest_at((1, -1, 0), (0, 0, 9))).heatmap((12, 12), SIGMA)
    assert (heat.argmax(1) == np.arange(12)).all()


def test_pixel_spacing_has_the_distance_of_rows_first() -> None:
    host = plane_from_dicom((0, 0, 0), (1, 0, 0, 0, 1, 0), (3.0, 1.0))
    assert intersection(host, guest_at((1, 0, 0), (6, 0, 0))).heatmap((8, 12), SIGMA).argmax(1).tolist() == [6] * 8
    assert intersection(host, guest_at((0, 1, 0), (0, 6, 0))).heatmap((8, 12), SIGMA).argmax(0).tolist() == [2] * 12


@pytest.mark.parametrize("seed", range(6))
def test_distances_equal_brute_force_on_oblique_planes_with_anisotropic_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    host, guest = plane(rng), plane(rng)
    line = intersection(host, guest, least_angle=0.5)
    direction = np.cross(host.normal, guest.normal)
    direction /= np.linalg.norm(direction)
    normals = np.stack([host.normal, guest.normal])
    offsets = [host.normal @ np.array(host.position), guest.normal @ np.array(guest.position)]
    on_line = np.linalg.lstsq(normals, np.array(offsets), rcond=None)[0]
    rows, columns = np.meshgrid(np.arange(20.0), np.arange(30.0), indexing="ij")
    away = host.points(rows, columns) - on_line
    brute = np.linalg.norm(away - (away @ direction)[..., None] * direction, axis=-1)
    assert np.abs(np.abs(line.distance((20, 30))) - brute).max() < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_change_the_guest_s_plane_does_not_change_the_heatmap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    host, guest = plane(rng), plane(rng)
    heat = intersection(host, guest, 1.0).heatmap((20, 30), SIGMA)
    flipped = replace(guest, columns=guest.rows, rows=guest.columns)
    shifted = guest.window(17.3, -41.0)
    turn, shift = rotation(rng), rng.normal(0, 50, 3)
    for other_host, other in ((host, flipped), (host, shifted), (moved(host, turn, shift), moved(guest, turn, shift))):
        assert np.allclose(intersection(other_host, other, 1.0).heatmap((20, 30), SIGMA), heat, atol=1e-9)


def test_ras_and_lps_give_the_same_heatmap() -> None:
    rng = np.random.default_rng(5)
    host, guest = plane(rng), plane(rng)
    flip = np.diag([-1.0, -1.0, 1.0])
    in_ras = intersection(moved(host, flip, np.zeros(3)), moved(guest, flip, np.zeros(3)), 1.0)
    assert np.allclose(in_ras.heatmap((20, 30), SIGMA), intersection(host, guest, 1.0).heatmap((20, 30), SIGMA))


def test_parallel_planes_have_no_line_and_lines_outside_are_known() -> None:
    assert intersection(AXIAL, replace(AXIAL, position=(0.0, 0.0, 12.0))) is None
    for angle, there in ((14.9, False), (15.1, True)):
        radians = math.radians(angle)
        tilted = guest_at((math.sin(radians), 0, math.cos(radians)), (4, 4, 0))
        assert (intersection(AXIAL, tilted) is not None) is there
    far = intersection(AXIAL, guest_at((1, 0, 0), (-40, 0, 0)))
    assert not far.passes((12, 16), SIGMA)
    assert intersection(AXIAL, guest_at((1, 0, 0), (-5, 0, 0))).passes((12, 16), SIGMA)
    assert np.isfinite(far.heatmap((12, 16), SIGMA)).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_window_s_line_is_the_image_s_line(seed: int) -> None:
    rng = np.random.default_rng(seed)
    host, guest = plane(rng), plane(rng)
    whole = intersection(host, guest, 1.0).heatmap((30, 40), SIGMA)
    part = intersection(host.window(4, 9), guest, 1.0).heatmap((16, 20), SIGMA)
    assert np.allclose(part, whole[4:20, 9:29], atol=1e-12)


def stack_of(heights: list[float], axes: np.ndarray) -> list[Plane]:
    """Slices at ``heights`` along the normal, each shifted within its plane as by a tilted gantry."""
    found = []
    for number, height in enumerate(heights):
        place = height * np.cross(axes[:, 0], axes[:, 1]) + 0.7 * number * axes[:, 1]
        found.append(plane_from_dicom(place, [*axes[:, 0], *axes[:, 1]], (1.0, 1.5)))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_locations_are_by_real_position_whatever_the_order_the_normal_or_the_patient_s_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes, heights = rotation(rng), [0.0, 8.0, 18.0, 20.0, 50.0]
    stack = stack_of(heights, axes)
    found = slice_locations(stack, "SAX")
    expected = np.array(heights) / 50
    assert np.allclose(found, expected) or np.allclose(found, 1 - expected)
    assert np.allclose(slice_locations(stack[::-1], "SAX"), found[::-1])
    turned = [replace(item, columns=item.rows, rows=item.columns) for item in stack]
    assert np.allclose(slice_locations(turned, "SAX"), found), "the vendor's IOP must not decide the ends"
    shifted = [moved(item, np.eye(3), np.array([30.0, -90, 4])) for item in stack]
    assert np.allclose(slice_locations(shifted, "SAX"), found)
    turn = rotation(np.random.default_rng(seed + 50))
    lain = slice_locations([moved(item, turn, np.array([5.0, 6.0, 7.0])) for item in stack], "SAX")
    assert np.allclose(lain, found) or np.allclose(lain, 1 - found), "an end is named by the patient's axes"
    along = location_direction(stack[0].normal, "SAX")
    assert np.allclose(lain, found) == (location_direction(turn @ stack[0].normal, "SAX") @ turn @ along > 0)
    assert slice_locations(stack[:1], "SAX") is None
    assert slice_locations([stack[0], stack[0]], "SAX") is None


def test_the_direction_runs_from_base_to_apex_or_along_the_largest_component() -> None:
    apex = np.array([1.0, -1.0, -1.0]) / math.sqrt(3)
    assert np.allclose(location_direction(-apex, "SAX"), apex)
    head_first = np.array([0.1, 0.2, -0.97]) / np.linalg.norm([0.1, 0.2, -0.97])
    assert location_direction(head_first, "AX")[2] > 0
    assert location_direction(head_first, "AX", "cardiac")[2] < 0
    hardly = np.array([1.0, 1.0, 0.0]) / math.sqrt(2)
    assert np.allclose(location_direction(-hardly, "SAX"), hardly), "no clear way to the apex: the largest component"


@pytest.mark.parametrize("seed", range(3))
def test_dicom_simpleitk_and_nifti_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes, spacing, origin = rotation(rng), rng.uniform(0.7, 5.0, 3), rng.uniform(-200, 200, 3)
    grid = planes_of_grid((30, 20, 4), spacing, origin, axes.ravel())
    iop = [*axes[:, 0], *axes[:, 1]]
    dicom = [plane_from_dicom(origin + k * spacing[2] * axes[:, 2], iop, (spacing[1], spacing[0])) for k in range(4)]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * spacing, origin
    nifti = planes_of_affine(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, (30, 20, 4))
    assert disagreement(grid, dicom, (20, 30)) < 1e-6
    assert disagreement(grid, nifti, (20, 30)) < 1e-6
    assert disagreement(grid, dicom[:3], (20, 30)) == math.inf
    assert disagreement(grid, [item.window(0, 0.5) for item in dicom], (20, 30)) == pytest.approx(0.5 * spacing[0])


@pytest.mark.parametrize(
    ("position", "orientation", "spacing"),
    [
        ((0, 0, math.nan), (1, 0, 0, 0, 1, 0), (1, 1)),
        ((0, 0, 0), (1, 0, 0, 0.3, 1, 0), (1, 1)),
        ((0, 0, 0), (2, 0, 0, 0, 1, 0), (1, 1)),
        ((0, 0, 0), (1, 0, 0, 0, 1, 0), (1, 0)),
        ((0, 0), (1, 0, 0, 0, 1, 0), (1, 1)),
    ],
)
def test_what_is_no_plane_is_refused(
    position: tuple[float, ...], orientation: tuple[float, ...], spacing: tuple[float, ...]
) -> None:
    with pytest.raises(DataError, match="a plane"):
        plane_from_dicom(position, orientation, spacing)
