"""``ctnet predict`` as a whole, on random weights: files, records, failures, refusals."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from ctnet_nnunet.cli.main import app
from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from tests.end_to_end.tiny import Tiny


def predict(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, words)])
    if isinstance(result.exception, CTNetError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


@pytest.fixture
def scans(tiny_for_models: Tiny, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for file in sorted((tiny_for_models.raw / "imagesTr").iterdir())[:2]:
        shutil.copy(file, folder / file.name.replace("_0000", "-t1"))
    return folder


def test_a_batch_with_a_report(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = [file.name.removesuffix(".nii.gz") for file in sorted(scans.iterdir())]
    (scans / "broken.nii.gz").write_bytes(gzip.compress(b"no image"))
    status, text = predict("-i", scans, "-o", out, "-m", model_folder, "--report", "--speed", "best")
    assert status == 1
    assert "× 2 mirrors × 2 folds" in text
    assert "failed: broken:" in text
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{n}.nii.gz" for n in names), *(f"{n}.html" for n in names),
         *(f"{n}_viewer.html" for n in names), "report.html", "run.json", "volumes.csv",
         "volumes.json"]
    )  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["settings"]["precision"] == "float32"
    assert list(record["cases"]) == names and list(record["failures"]) == ["broken"]
    with (out / "volumes.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        image = sitk.ReadImage(str(out / f"{row['case']}.nii.gz"))
        voxels = int((sitk.GetArrayFromImage(image) == {"left blob": 1, "right blob": 2}[row["structure"]]).sum())
        assert float(row["volume_ml"]) == pytest.approx(voxels * np.prod(image.GetSpacing()) / 1000, rel=1e-4)
    for page in (out / "report.html", out / f"{names[0]}.html"):
        assert "<script" not in page.read_text()


def test_what_is_refused_before_anything_is_written(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, expected in (
        (["--device", "tpu"], "cpu, cuda or mps"),
        (["--speed", "slow"], "one of best, balanced, fast"),
        (["--engine", "tensorrt"], "one of auto, torch, openvino"),
        (["-f", "7"], "no such checkpoint"),
    ):
        with pytest.raises(CTNetError, match=expected):
            predict("-i", scans, "-o", out, "-m", model_folder, *words)
    with pytest.raises(DataError, match="missing"):
        predict("-i", tmp_path / "none", "-o", out, "-m", model_folder)
    assert not out.exists()
    out.mkdir()
    earlier = out / f"{next(scans.iterdir()).name}"
    earlier.write_bytes(b"precious")
    with pytest.raises(SetupError, match="exists already"):
        predict("-i", scans, "-o", out, "-m", model_folder)
    assert earlier.read_bytes() == b"precious"


def test_a_scan_unlike_the_training_s_is_flagged(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    file = next(scans.iterdir())
    image = sitk.ReadImage(str(file))
    image.SetSpacing([3.0 * size for size in image.GetSpacing()])
    sitk.WriteImage(image, str(file))
    status, text = predict("-i", file, "-o", tmp_path / "out", "-m", model_folder, "-f", "0")
    assert status == 0
    assert "WARNING: voxels are far from the training's" in text


def test_only_broken_scans(model_folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(gzip.compress(b"no image"))
    with pytest.raises(DataError, match="no case could be predicted; the first, bad:"):
        predict("-i", bad, "-o", tmp_path / "out", "-m", model_folder)


def test_maps_lie_on_the_scan(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    file = sorted(scans.iterdir())[0]
    status, text = predict("-i", file, "-o", tmp_path / "out", "-m", model_folder, "--maps", "--speed", "fast")
    assert status == 0 and "× 1 mirrors × 2 folds" in text and "GB of memory" in text
    scan = sitk.ReadImage(str(file))
    name = file.name.removesuffix(".nii.gz")
    for kind, values in (("entropy", None), ("disagreement", {0.0, 0.5, 1.0})):
        image = sitk.ReadImage(str(tmp_path / "out" / f"{name}_{kind}.nii.gz"))
        assert (image.GetSize(), image.GetOrigin(), image.GetDirection()) == (
            scan.GetSize(), scan.GetOrigin(), scan.GetDirection()
        )  # fmt: skip
        array = sitk.GetArrayFromImage(image)
        assert array.min() >= 0 and array.max() <= 1 and array.max() > 0
        assert values is None or image.GetSpacing() != scan.GetSpacing() or set(np.unique(array)) <= values
