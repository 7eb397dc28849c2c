"""From preprocessed slices back to the patient, against nnU-Net's own preprocessing of an image that encodes places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.geometry import disagreement, intersection, planes_of_grid
from ctnet_nnunet.planes.preprocessed import first_slice, original_planes, preprocessed_planes
from tests.planes.oblique import plane, rotation

SIZE = (40, 30, 6)  # x, y, z
SPACING = (0.9, 1.4, 7.0)


def grid(rng: np.random.Generator) -> dict[str, Any]:
    direction = tuple(rotation(rng).ravel().tolist())
    return {"spacing": SPACING, "origin": tuple(rng.uniform(-50, 50, 3).tolist()), "direction": direction}


def preprocessed(image: np.ndarray, sitk_stuff: dict[str, Any], order: tuple[int, int, int]) -> tuple[np.ndarray, dict]:
    """What stock preprocessing does to geometry: transpose, crop, resample in plane; the crop leaves a margin out."""
    data = image.transpose(order)[None].astype(np.float32)
    mask = np.zeros(data.shape, np.float32)
    mask[:, 1:-1, 2:-1, 1:-2] = 1
    _, _, box = crop_to_nonzero(mask)
    cropped = data[(slice(None), *(slice(*bounds) for bounds in box))]
    spacing = [SPACING[2 - axis] for axis in order]
    target = [cropped.shape[1], 37, 23]
    resampled = resample_data_or_seg_to_shape(cropped, target, spacing, spacing, order=1)
    properties = {
        "sitk_stuff": sitk_stuff,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": cropped.shape[1:],
    }
    return resampled[0], properties


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_distances_agree_with_a_preprocessed_image_that_encodes_them(seed: int, order: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    sitk_stuff, guest = grid(rng), plane(rng)
    raw = planes_of_grid(SIZE, SPACING, sitk_stuff["origin"], sitk_stuff["direction"])
    rows, columns = np.meshgrid(np.arange(30.0), np.arange(40.0), indexing="ij")
    distances = [(item.points(rows, columns) - np.array(guest.position)) @ guest.normal for item in raw]
    after, properties = preprocessed(np.stack(distances), sitk_stuff, order)
    found = preprocessed_planes(properties, after.shape, order)
    assert first_slice(properties) == 1 and len(found) == after.shape[0]
    before = properties["shape_after_cropping_and_before_resampling"][1:]
    # Within half an old pixel of the border the resampler repeats it.
    margin = [int(np.ceil(new / old / 2)) for new, old in zip((37, 23), before, strict=True)]
    inner = tuple(slice(edge, -edge) for edge in margin)
    rows, columns = np.meshgrid(np.arange(37.0), np.arange(23.0), indexing="ij")
    for index, item in enumerate(found):
        expected = (item.points(rows, columns) - np.array(guest.position)) @ guest.normal
        assert np.abs(after[index] - expected)[inner].max() < 0.05 * min(item.spacing)
        line = intersection(item, guest, 0.1)
        sine = np.linalg.norm(np.cross(item.normal, guest.normal))
        assert np.abs(line.distance((37, 23)) * sine - expected).max() < 1e-6


def test_corner_aligned_resampling_would_be_seen() -> None:
    """The half pixel matters: without it the first row would lie where the crop's first row was."""
    sitk_stuff = grid(np.random.default_rng(1))
    after, properties = preprocessed(np.zeros(SIZE[::-1]), sitk_stuff, (0, 1, 2))
    found = preprocessed_planes(properties, after.shape, (0, 1, 2))[0]
    corner = original_planes(properties, 6)[1].window(2, 1)
    shift = np.linalg.norm(np.array(found.position) - np.array(corner.position))
    assert shift > 0.1


def test_the_raw_slices_are_those_of_the_image() -> None:
    sitk_stuff = grid(np.random.default_rng(2))
    raw = planes_of_grid(SIZE, SPACING, sitk_stuff["origin"], sitk_stuff["direction"])
    assert disagreement(raw, original_planes({"sitk_stuff": sitk_stuff}, 6), (30, 40)) < 1e-6


def test_without_cropping_and_resampling_preprocessed_slices_are_the_raw_ones() -> None:
    sitk_stuff = grid(np.random.default_rng(3))
    properties = {
        "sitk_stuff": sitk_stuff,
        "bbox_used_for_cropping": [[0, 6], [0, 30], [0, 40]],
        "shape_after_cropping_and_before_resampling": (6, 30, 40),
    }
    found = preprocessed_planes(properties, (6, 30, 40), (0, 1, 2))
    assert disagreement(found, original_planes(properties, 6), (30, 40)) < 1e-6


def test_what_keeps_no_geometry_is_refused() -> None:
    with pytest.raises(DataError, match="SimpleITKIO"):
        preprocessed_planes({"nibabel_stuff": {}}, (1, 2, 3), (0, 1, 2))
    flat = {"sitk_stuff": {"spacing": (1.0, 1.0), "origin": (0.0, 0.0), "direction": (1.0, 0.0, 0.0, 1.0)}}
    with pytest.raises(DataError, match="2D image"):
        preprocessed_planes(flat, (1, 2, 3), (0, 1, 2))
    after, properties = preprocessed(np.zeros(SIZE[::-1]), grid(np.random.default_rng(0)), (0, 1, 2))
    with pytest.raises(DataError, match="across slices"):
        preprocessed_planes(properties, (9, *after.shape[1:]), (0, 1, 2))
