"""DICOM → prediction → label map and DICOM-SEG → back to voxels, in every axis order: not one voxel is mirrored.

The model is real and its answer known (label = intensity), so each voxel of a random phantom is checked at its place in
the patient. The DICOM-SEG is read by hand from its frames' positions, not by the library that wrote it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.conversion.fake_dicom import write_enhanced, write_series
from tests.conversion.test_orientations import directions
from tests.inference.test_run import predict
from tests.inference.threshold_model import write_model

LABELS = ("Left-Caudate", "Right-Caudate", "red nucleus")
SIZE = (9, 8, 7)


def phantom(seed: int, direction: np.ndarray) -> sitk.Image:
    values = np.random.default_rng(seed).integers(0, len(LABELS) + 1, SIZE[::-1]).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetOrigin((-31.0, 17.0, 53.0))
    image.SetDirection(direction.ravel().tolist())
    return image


def segments_at(file: Path) -> dict[tuple[float, ...], int]:
    """Place in the patient (mm, rounded) → segment number, of every voxel that a DICOM-SEG marks."""
    data = dcmread(file)
    shared = data.SharedFunctionalGroupsSequence[0]
    along_row, along_column = np.array(
        [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    ).reshape(2, 3)
    rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    marked: dict[tuple[float, ...], int] = {}
    frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array([float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient])
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for row, column in np.argwhere(frame):
            place = corner + along_row * columns * column + along_column * rows * row
            key = tuple(float(v) for v in np.round(place, 2) + 0.0)
            assert key not in marked
            marked[key] = number
    return marked


def labels_at(image: sitk.Image) -> dict[tuple[float, ...], int]:
    """The same of an image whose values are labels."""
    array = sitk.GetArrayViewFromImage(image)
    found = {}
    for z, y, x in np.argwhere(array > 0).tolist():
        place = image.TransformIndexToPhysicalPoint((x, y, z))
        found[tuple(float(v) for v in np.round(place, 2) + 0.0)] = int(array[z, y, x])
    return found


def compared(first: dict[tuple[float, ...], int], second: dict[tuple[float, ...], int]) -> bool:
    """Equal, with 0.02 mm for rounding: voxels lie 1 mm apart."""
    if len(first) != len(second):
        return False
    (a, b), (v, w) = (np.array(list(d)) for d in (first, second)), (list(d.values()) for d in (first, second))
    from scipy.spatial import cKDTree

    distance, index = cKDTree(b).query(a)
    return bool(distance.max() < 0.03 and all(v[i] == w[int(j)] for i, j in enumerate(index)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("threshold") / "model", LABELS)


def study(folder: Path, image: sitk.Image, seed: int = 0, **tags: object) -> list[Path]:
    return write_series(
        image, folder, seed, StudyInstanceUID=generate_uid(), FrameOfReferenceUID=generate_uid(), SeriesNumber=3, **tags
    )


def test_dicom_to_segmentation_in_every_axis_order(model: Path, tmp_path: Path) -> None:
    made = {name: phantom(seed, direction) for seed, (name, direction) in enumerate(directions().items())}
    for seed, (name, image) in enumerate(made.items()):
        study(tmp_path / "in" / name, image, seed)
    status, text = predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--speed", "best")
    assert status == 0, text
    for name, image in made.items():
        expected = labels_at(image)
        written = sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz"))
        assert compared(expected, labels_at(written)), name
        assert compared(expected, segments_at(tmp_path / "out" / f"{name}_seg.dcm")), name


def test_the_comparison_sees_a_mirrored_phantom(tmp_path: Path) -> None:
    image = phantom(0, np.eye(3))
    mirrored = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[..., ::-1])
    mirrored.CopyInformation(image)
    assert compared(labels_at(image), labels_at(image))
    assert not compared(labels_at(image), labels_at(mirrored))


def test_a_nifti_is_turned_where_the_model_says_how_its_training_lay(model: Path, tmp_path: Path) -> None:
    """Labels come back in the scan's own grid; the network saw the training's orientation."""
    import shutil

    trained = Path(shutil.copytree(model, tmp_path / "model"))
    reference = {
        "dataset": "d", "cases": 3, "orientations": {"RAS": 3}, "spacing_mm": {"low": [1, 1, 1], "high": [1, 1, 1]},
        "extent_mm": {"low": [7, 7, 7], "high": [9, 9, 9]}, "volumes_ml": {},
    }  # fmt: skip
    (trained / "reference_volumes.json").write_text(json.dumps(reference))
    image = phantom(5, directions()["a201mpm"])
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    _, text = predict("-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-m", trained, "--speed", "best")
    assert "to RAS, as the model's scans lie" in text
    written = sitk.ReadImage(str(tmp_path / "out" / "scan.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-4)


def test_what_a_segmentation_says(model: Path, tmp_path: Path) -> None:
    files = study(tmp_path / "knee", phantom(1, np.eye(3)), PatientName="Doe^Jane", Modality="MR")
    predict("-i", tmp_path / "knee", "-o", tmp_path / "out", "-m", model)
    data = dcmread(tmp_path / "out" / "knee_seg.dcm")
    source = dcmread(files[0])
    assert data.StudyInstanceUID == source.StudyInstanceUID
    assert data.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert data.PatientName == "Doe^Jane"
    (referenced,) = data.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    instances = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert instances == {dcmread(file).SOPInstanceUID for file in files}
    left, right, red = data.SegmentSequence
    assert [code_of(item.SegmentedPropertyTypeCodeSequence[0]) for item in (left, red)] == [
        ("11000004", "SCT"), ("RED_NUCLEUS", "99CTNET"),
    ]  # fmt: skip
    sides = [
        code_of(item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0])
        for item in (left, right)
    ]
    assert sides == [("7771000", "SCT"), ("24028007", "SCT")]
    assert "SegmentedPropertyTypeModifierCodeSequence" not in red.SegmentedPropertyTypeCodeSequence[0]
    algorithm = left.SegmentationAlgorithmIdentificationSequence[0]
    assert "Dataset742_Threshold" in algorithm.AlgorithmName
    assert left.SegmentAlgorithmType == "AUTOMATIC"
    record = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["knee"]
    assert record["companions"] == ["knee_seg.dcm"]
    assert record["inputs"][0]["series_instance_uid"] == source.SeriesInstanceUID
    assert record["inputs"][0]["files"] == len(files)


def code_of(item: Dataset) -> tuple[str, str]:
    return str(item.CodeValue), str(item.CodingSchemeDesignator)


def test_an_enhanced_file(model: Path, tmp_path: Path) -> None:
    """One file with all slices; dcm2niix reads it, the segmentation refers to its frames."""
    image = phantom(7, directions()["a120pmp"])
    write_enhanced(image, tmp_path / "in" / "enhanced.dcm")
    status, text = predict("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "--speed", "best")
    written = sitk.ReadImage(str(tmp_path / "out" / "in.nii.gz"))
    assert compared(labels_at(image), labels_at(written))
    # The fake has no frame of reference: the label map stays, the missing segmentation is named.
    assert status == 1
    assert "has no FrameOfReferenceUID" in text
    data = dcmread(tmp_path / "in" / "enhanced.dcm")
    data.FrameOfReferenceUID = generate_uid()
    data.save_as(tmp_path / "in" / "enhanced.dcm")
    status, text = predict("-i", tmp_path / "in", "-o", tmp_path / "again", "-m", model, "--speed", "best")
    assert status == 0, text
    assert compared(labels_at(image), segments_at(tmp_path / "again" / "in_seg.dcm"))
