"""Folders of label maps: what is scored, what is refused, and that one bad case does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.cases import LabelScheme, evaluate_folders, read_label_scheme, score_case
from ctnet_nnunet.evaluation.metrics import Structure

SCHEME = LabelScheme((Structure("nucleus", (1,)), Structure("both", (1, 2))), ignore=3, file_ending=".nii.gz")


def _write(path: Path, array: NDArray[Any], spacing: tuple[float, ...] = (1.0, 1.0, 1.0), shift: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin([shift, 0.0, 0.0])
    sitk.WriteImage(image, str(path))
    return path


def _labels() -> NDArray[np.uint8]:
    labels = np.zeros((6, 7, 8), dtype=np.uint8)
    labels[1:3, 1:4, 1:5] = 1
    labels[3:5, 1:4, 1:5] = 2
    return labels


def test_spacing_goes_with_its_axis(tmp_path: Path) -> None:
    moved = np.roll(_labels(), 1, axis=0)  # along z, the third number of the header
    truth = _write(tmp_path / "t.nii.gz", _labels(), spacing=(1.0, 1.0, 4.0))
    prediction = _write(tmp_path / "p.nii.gz", moved, spacing=(1.0, 1.0, 4.0))

    scores = score_case(truth, prediction, SCHEME)

    assert scores["nucleus"].dice == pytest.approx(0.5)
    assert scores["nucleus"].hd95_mm == pytest.approx(4.0)
    assert scores["both"].truth_ml == pytest.approx(48 * 4 / 1000)


def test_ignored_voxels_do_not_count(tmp_path: Path) -> None:
    truth = _labels()
    truth[3:5] = 3
    prediction = _labels()
    prediction[3:5] = 1

    scores = score_case(_write(tmp_path / "t.nii.gz", truth), _write(tmp_path / "p.nii.gz", prediction), SCHEME)

    assert scores["nucleus"].dice == 1.0


@pytest.mark.parametrize(("shape", "shift", "reason"), [((6, 7, 9), 0.0, "grid"), ((6, 7, 8), 0.5, "0.5 mm off")])
def test_other_grid_is_refused(tmp_path: Path, shape: tuple[int, ...], shift: float, reason: str) -> None:
    truth = _write(tmp_path / "t.nii.gz", _labels())
    prediction = _write(tmp_path / "p.nii.gz", np.ones(shape, dtype=np.uint8), shift=shift)

    with pytest.raises(DataError, match=reason):
        score_case(truth, prediction, SCHEME)


def test_rounding_in_a_header_is_no_other_grid(tmp_path: Path) -> None:
    truth = _write(tmp_path / "t.nii.gz", _labels())
    prediction = _write(tmp_path / "p.nii.gz", _labels(), shift=1e-4)

    assert score_case(truth, prediction, SCHEME)["nucleus"].dice == 1.0


@pytest.mark.parametrize(("value", "reason"), [(7, "label 7"), (0.5, "no integers"), (np.nan, "NaN")])
def test_labels_that_the_dataset_lacks_are_refused(tmp_path: Path, value: float, reason: str) -> None:
    odd = _labels().astype(np.float32)
    odd[0, 0, 0] = value

    with pytest.raises(DataError, match=reason):
        score_case(_write(tmp_path / "t.nii.gz", _labels()), _write(tmp_path / "p.nii.gz", odd), SCHEME)


def test_a_failing_case_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write(tmp_path / "truth" / f"{name}.nii.gz", _labels())
    _write(tmp_path / "predictions" / "a.nii.gz", _labels())
    (tmp_path / "predictions" / "b.nii.gz").write_bytes(b"no image")

    result = evaluate_folders(tmp_path / "truth", tmp_path / "predictions", SCHEME)

    assert list(result.table) == ["a"]
    assert "b.nii.gz: cannot be read" in result.failures["b"]
    assert "no such file" in result.failures["c"]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no label map"):
        evaluate_folders(tmp_path, tmp_path, SCHEME)


def test_label_scheme_from_dataset_json(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels, "file_ending": ".nrrd"}))

    scheme = read_label_scheme(path)

    assert scheme.structures == (Structure("whole", (1, 2)), Structure("core", (2,)))
    assert (scheme.ignore, scheme.file_ending, scheme.known) == (3, ".nrrd", frozenset({0, 1, 2, 3}))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"labels": {"a": 1}}', '{"labels": 3, "file_ending": "x"}'])
def test_a_broken_dataset_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(text)

    with pytest.raises(DataError, match="is no dataset"):
        read_label_scheme(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_label_scheme(tmp_path / "missing.json")
