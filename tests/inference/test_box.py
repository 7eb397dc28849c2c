"""``ctnet predict --box``: found by a coarse pass, predicted in the box alone, said, flagged; never silently cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.inference.box import around, cut_labels, find_middle, is_found, known_structures
from tests.conversion.test_orientations import directions
from tests.inference.test_run import predict
from tests.inference.test_sides import LABELS, compared, labels_at, segments_at, study
from tests.inference.threshold_model import write_model

SIZE = (52, 48, 44)
CORE = (10, 9, 8)
"""Voxels of 1 mm (x, y, z) of a scan, and of what lies in it."""


def head(first: tuple[int, int, int], core: tuple[int, int, int] = CORE, turn: str = "a012ppp") -> sitk.Image:
    """Random labels in a block at ``first``, one stray voxel elsewhere; -1 is background that nnU-Net does not crop."""
    values = np.full(SIZE[::-1], -1, np.int16)
    block = tuple(slice(start, start + length) for start, length in zip(first[::-1], core[::-1], strict=True))
    values[block] = np.random.default_rng(1).integers(1, len(LABELS) + 1, core[::-1])
    values[1, 1, 1] = 3
    image = sitk.GetImageFromArray(values)
    image.SetOrigin((-31.0, 17.0, 53.0))
    image.SetDirection(directions()[turn].ravel().tolist())
    return image


def true_labels(image: sitk.Image) -> np.ndarray:
    return np.maximum(sitk.GetArrayFromImage(image), 0)


def reference(extent: float, structures: tuple[float, ...] = CORE) -> dict[str, Any]:
    volume = float(np.prod(CORE)) / 3000
    return {
        "dataset": "d", "cases": 3, "orientations": {"LPS": 3}, "spacing_mm": {"low": [1] * 3, "high": [1] * 3},
        "extent_mm": {"low": [extent] * 3, "high": [extent] * 3},
        "structures_mm": {"low": list(structures), "high": list(structures)},
        "places_mm": {
            name: {"low": [-v / 2 for v in structures], "high": [v / 2 for v in structures]} for name in LABELS
        },
        "volumes_ml": {name: [volume] * 3 for name in LABELS},
    }  # fmt: skip


def model_like(root: Path, extent: float, **plan: Any) -> Path:
    """``extent`` of the training scans: 24 mm are crops, 50 mm are whole ones."""
    model = write_model(root / "model", LABELS, **plan)
    (model / "reference_volumes.json").write_text(json.dumps(reference(extent)))
    return model


def box_of(out: Path, case: str) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())["cases"][case]["box"]


@pytest.mark.parametrize(("extent", "engine"), [(24.0, "torch"), (50.0, "openvino")])
def test_a_scan_in_its_box(tmp_path: Path, extent: float, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    model, image = model_like(tmp_path, extent), head((31, 20, 14))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    words = ("-i", tmp_path / "scan.nii.gz", "-m", model, "--engine", engine, "--box", "--report", "--maps")
    status, text = predict(*words, "-o", tmp_path / "out")
    assert status == 0, text
    done = box_of(tmp_path / "out", "scan")
    size = [length + 20 for length in CORE]
    assert done["mm"] == size and done["passes"] < done["whole"]
    search = 7 * 6 * 6 + (4**3 if extent < 50 else 0)
    assert f"in a box: {search} to find it + " in text and f"instead of {done['whole']}, about" in text
    assert "predicted in a box of 30 × 29 × 28 mm" in (tmp_path / "out" / "scan.html").read_text()
    expected, cut = true_labels(image), tuple(slice(a, b) for a, b in done["voxels"][::-1])
    assert expected[cut].any() and expected[1, 1, 1]
    inside = np.zeros_like(expected)
    inside[cut] = expected[cut]
    written = sitk.ReadImage(str(tmp_path / "out" / "scan.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), inside)
    entropy = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "scan_entropy.nii.gz")))
    assert entropy[cut].any() and entropy.sum() == entropy[cut].sum()
    middle = np.array([first + length / 2 - 0.5 for first, length in zip((31, 20, 14), CORE, strict=True)])
    at = image.TransformContinuousIndexToPhysicalPoint(middle.tolist())
    np.testing.assert_allclose(np.array(done["centre"]) * (-1, -1, 1), at, atol=1.0)


def test_turned_dicom_and_its_segmentation(tmp_path: Path) -> None:
    image = head((6, 25, 20), turn="a120mpm")
    study(tmp_path / "in", image)
    status, text = predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model_like(tmp_path, 24), "--box")
    assert status == 0 and "to LPS, as the model's scans lie" in text, text
    image[1, 1, 1] = -1  # the stray voxel lies outside
    expected = labels_at(image)
    assert compared(expected, labels_at(sitk.ReadImage(str(tmp_path / "out" / "in.nii.gz"))))
    assert compared(expected, segments_at(tmp_path / "out" / "in_seg.dcm"))


def test_what_does_not_fit(tmp_path: Path) -> None:
    """No structure, one that reaches far out, one cut by the box, a scan as small as its box."""
    crops, whole = model_like(tmp_path / "crops", 24), model_like(tmp_path / "whole", 50)
    (tmp_path / "in").mkdir()
    scans = {
        "far": head((8, 15, 14), (42, 9, 8)),
        "cut": head((8, 15, 14), (32, 9, 8)),
        "small": head((10, 10, 10))[:30, :29, :28],
        "none": head((31, 20, 14), (1, 1, 1)),
    }
    for name, image in scans.items():
        sitk.WriteImage(image, str(tmp_path / "in" / f"{name}.nii.gz"))
    status, text = predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", whole, "--box")
    assert status == 0, text
    assert "none: WARNING: no box: the coarse pass found 0 of 3 structures; the whole scan is predicted" in text
    assert "far: WARNING: no box: 29 % of what the coarse pass found reaches out of the box" in text
    assert "small: predicted as a whole and not in a box: it costs no more than a box" in text
    flags = json.loads((tmp_path / "out" / "volumes.json").read_text())
    assert all("touches the border of the box" in item["flags"] for item in flags["cut"])
    predict("-i", tmp_path / "in" / "far.nii.gz", "-o", tmp_path / "cropped", "-m", crops, "--box")
    flagged = json.loads((tmp_path / "cropped" / "volumes.json").read_text())["far"]
    assert all("touches the border of the box" in item["flags"] for item in flagged)
    assert not any("touches the border of the box" in item["flags"] for item in flags["far"])
    for name in ("far", "small", "none"):
        written = sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), true_labels(scans[name]))


def test_a_model_that_does_not_know_the_extent(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", LABELS)
    sitk.WriteImage(head((9, 9, 9)), str(tmp_path / "scan.nii.gz"))
    with pytest.raises(SetupError, match="run `ctnet reference"):
        predict("-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-m", model, "--box")
    assert not (tmp_path / "out").exists()


def test_a_crop_s_labels_are_those_of_the_cropped_file(model_folder: Path, tmp_path: Path) -> None:
    """A random CTNet with z-scores, whose labels depend on all that lies in the crop; spacing is resampled."""
    dataset = json.loads((model_folder / "dataset.json").read_text())
    names = [name for name in dataset["labels"] if name != "background"]
    content = reference(30.0, (12, 12, 12)) | {"volumes_ml": {name: [0.001] * 3 for name in names}}
    content["places_mm"] = {name: {"low": [-6] * 3, "high": [6] * 3} for name in names}
    content["orientations"] = {"RAS": 3}
    (model_folder / "reference_volumes.json").write_text(json.dumps(content))
    noise = np.random.default_rng(3).normal(100, 20, (50, 56, 60)).astype(np.float32)
    image = sitk.GetImageFromArray(noise)
    image.SetSpacing((1.1, 0.9, 1.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    words = ("-m", model_folder, "--speed", "best")
    status, text = predict("-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", *words, "--box")
    assert status == 0, text
    done = box_of(tmp_path / "out", "scan")
    assert done["reason"] == "", text
    (a, b), (c, d), (e, f) = done["voxels"]
    sitk.WriteImage(image[a:b, c:d, e:f], str(tmp_path / "crop.nii.gz"))
    predict("-i", tmp_path / "crop.nii.gz", "-o", tmp_path / "out", *words, "--force")
    boxed, crop = (sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")) for name in ("scan", "crop"))
    assert len(np.unique(sitk.GetArrayFromImage(crop))) > 1
    np.testing.assert_array_equal(sitk.GetArrayFromImage(boxed[a:b, c:d, e:f]), sitk.GetArrayFromImage(crop))


def test_votes_of_false_structures_do_not_meet() -> None:
    """b lies behind a; a false a of ten times the volume, and a false b in another place, do not draw the box away."""
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[20:26, 20:26, 20:26], labels[26:30, 20:24, 20:24] = 1, 2
    labels[:12, :12, :12], labels[:2, 34:, :] = 1, 2
    places = {"a": ([-5, -3, -3], [1, 3, 3]), "b": ([1, -3, -3], [5, 1, 1])}
    structures = (Structure("a", (1,)), Structure("b", (2,)), Structure("rare", (3,)))
    known = known_structures(structures, {"a": [0.2, 0.3], "b": [0.06], "rare": [0, 0, 1]}, places)
    assert [one.structure.name for one in known] == ["a", "b"]
    middle, found = find_middle(labels, known, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(middle, (25, 23, 23), atol=0.5)
    assert found == ["a", "b"] and is_found(known, found)
    assert not is_found(known, find_middle(labels * 0, known, (1.0, 1.0, 1.0))[1])


def test_cut_labels_count_inner_faces_only() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0], labels[-1] = 1, 2
    assert cut_labels(labels, around((1.5, 10, 10), (3, 3, 3), (20, 20, 20)), (20, 20, 20)) >= {2}
    assert 1 not in cut_labels(np.where(labels == 1, 1, 0)[:, 1:2, 1:2], (slice(0, 3), slice(0, 1), slice(0, 1)),
                               (20, 1, 1))  # fmt: skip
