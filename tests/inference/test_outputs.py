"""BIDS in and out, codes, the reference of the training cases, the report and its viewer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.reference import differences, measure_reference, patient_axes
from ctnet_nnunet.inference.dicom_codes import all_codes, coded
from tests.inference.test_run import predict
from tests.inference.test_sides import LABELS, phantom
from tests.inference.threshold_model import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its training cases beside it: three phantoms, whose labels are their intensities."""
    root = tmp_path_factory.mktemp("outputs")
    folder = write_model(root / "model", LABELS, ("T1",))
    (root / "labels").mkdir()
    for seed in range(3):
        image = sitk.DICOMOrient(phantom(seed, np.eye(3)), "RAS")
        sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(root / "labels" / f"c{seed}.nii.gz"))
    from typer.testing import CliRunner

    from ctnet_nnunet.cli.main import app

    done = CliRunner().invoke(app, ["reference", "-m", str(folder), "--labels", str(root / "labels")])
    assert done.exit_code == 0, done.output
    assert "3 training cases, orientation RAS" in done.output
    return folder


def test_the_reference_is_what_the_label_maps_hold(model: Path) -> None:
    content = json.loads((model / "reference_volumes.json").read_text())
    arrays = [sitk.GetArrayFromImage(phantom(seed, np.eye(3))) for seed in range(3)]
    assert content["volumes_ml"]["red nucleus"] == pytest.approx(sorted((a == 3).sum() / 1000 for a in arrays))
    assert content["extent_mm"] == {"low": [9, 8, 7], "high": [9, 8, 7]}
    assert content["structures_mm"] == {"low": [9, 8, 7], "high": [9, 8, 7]}
    assert content["places_mm"]["red nucleus"] == {"low": [-4.5, -4, -3.5], "high": [4.5, 4, 3.5]}
    again = measure_reference(model.parent / "labels", model / "dataset.json", "d")
    assert differences(again, [1, 1, 1], [9, 8, 7]) == []
    assert "field of view far" in differences(again, [1, 1, 1], [9, 8, 30])[0]
    assert "voxels far" in differences(again, [2, 1, 1], [9, 8, 7])[0]
    with pytest.raises(DataError, match="--labels"):
        measure_reference(model / "none", model / "dataset.json", "d")


def test_the_axes_of_a_header_are_those_of_the_image() -> None:
    image = sitk.Image([4, 5, 6], sitk.sitkUInt8)
    image.SetSpacing((1.0, 2.0, 3.0))
    turned = sitk.DICOMOrient(image, "SAL")
    letters = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(turned.GetDirection())
    assert patient_axes(letters, turned.GetSpacing(), turned.GetSize()) == ([1, 2, 3], [4, 10, 18])


def test_bids(model: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "bids", tmp_path / "bids" / "derivatives" / "ctnet"
    for name in ("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-02/anat/sub-02_run-2_T1w", "sub-02/anat/sub-02_T2w"):
        file = root / f"{name}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.DICOMOrient(phantom(len(name), np.eye(3)), "RAS"), str(file))
    (root / "dataset_description.json").write_text('{"Name": "n", "BIDSVersion": "1.8.0"}')
    status, text = predict("-i", root, "-o", out, "-m", model)
    assert status == 0, text
    labels = out / "sub-01/ses-a/anat/sub-01_ses-a_desc-ctnet_dseg"
    assert (out / "sub-02/anat/sub-02_run-2_desc-ctnet_dseg.nii.gz").is_file()
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(f"{labels}.nii.gz")), expected)
    table = Path(f"{labels}.tsv").read_text().splitlines()
    assert table == ["index\tname", "1\tLeft-Caudate", "2\tRight-Caudate", "3\tred nucleus"]
    assert json.loads(Path(f"{labels}.json").read_text())["Sources"] == [
        "bids:source:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"
    ]
    description = json.loads((out / "dataset_description.json").read_text())
    assert (description["DatasetType"], description["DatasetLinks"]) == ("derivative", {"source": "../.."})
    with pytest.raises(DataError, match="no file fits FLAIR"):
        predict("-i", root, "-o", tmp_path / "o", "-m", model, "--channel", "T1=FLAIR")


def test_the_codes_are_those_of_dicom() -> None:
    from pydicom.sr._concepts_dict import concepts

    known = {code: {m.lower() for m in meanings} for code, meanings in _meanings(concepts["SCT"]).items()}
    for code in all_codes():
        assert code.meaning.lower() in known[code.value], code
    words = {word for meanings in known.values() for word in meanings}
    assert not [word for word in words if re.search("red nucleus|subthalamic|dentate nucleus|pallidus (in|ex)t", word)]
    left, pallidum = coded("Left-Pallidum"), coded("pallidum_R")
    assert (left.type, left.side.meaning) == (pallidum.type, "Left")  # type: ignore[union-attr]
    assert coded("left ventricle").type.value == "87878005"
    assert coded("edema").category.meaning == "Morphologically Abnormal Structure"
    assert all(len(coded(name).type.value) <= 16 for name in ("a very long name of a structure", "???"))


def _meanings(table: dict[str, dict[str, tuple[str, list[int]]]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in table.values():
        for code, (meaning, _) in entry.items():
            found.setdefault(code, set()).add(meaning)
    return found


def test_report_and_viewer(model: Path, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.DICOMOrient(phantom(9, np.eye(3)), "RAS"), str(tmp_path / "scan.nii.gz"))
    predict("-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-m", model, "--report")
    page = (tmp_path / "out" / "scan.html").read_text()
    low, _, high = json.loads((model / "reference_volumes.json").read_text())["volumes_ml"]["red nucleus"]
    assert f"<td>{low:.2f} to {high:.2f}</td>" in page
    assert 'href="scan_viewer.html"' in page
    viewer = (tmp_path / "out" / "scan_viewer.html").read_text()
    assert not re.findall(r"""src=["']?(?:https?:)?//|<link\b[^>]*href|@import""", page + viewer)
    assert "default-src 'none'" in viewer
    assert "red nucleus</span>" in viewer
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: the viewer was written, not run")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run(
        [*command, f"file://{tmp_path / 'out' / 'scan_viewer.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Refused to" not in shown.stderr
    assert re.search(r"<canvas[^>]*width=\"[1-9]", shown.stdout), "its script draws into a canvas of a size"
