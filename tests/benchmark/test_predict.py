"""The prediction benchmark's figures, from label maps made by hand; the commands themselves are tested elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.benchmark.predict import Job, Row, _compare, markdown, peak_of_child, read_job
from ctnet_nnunet.benchmark.trade_off import measure_trade_off, settings_of, trade_off_table
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.evaluation.metrics import Structure
from tests.inference.threshold_model import write_model


def write(folder: Path, voxels: int) -> None:
    folder.mkdir()
    labels = np.zeros((4, 5, 5), np.uint8)
    labels.ravel()[:voxels] = 1
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "a.nii.gz"))


def test_labels_are_compared_with_stock_and_with_the_reference(tmp_path: Path) -> None:
    for name, voxels in (("nnU-Net_best", 10), ("torch_fast", 6), ("truth", 4)):
        write(tmp_path / name, voxels)
    row = Row("torch", "fast", [2.0, 4.0, 5.0])
    _compare(row, Job(tmp_path, tmp_path, ("0",), tmp_path / "truth", ".nii.gz", (Structure("s", (1,)),)), tmp_path)
    assert row.differing == pytest.approx(0.04)
    assert row.dice_to_stock == pytest.approx(12 / 16)
    assert row.dice_to_reference == pytest.approx(8 / 10)
    stock = Row("nnU-Net", "best", [6.0, 6.0, 20.0], 0.0, 1.0)
    assert markdown([stock, row])[2:] == [
        "| nnU-Net | best | 6.0 (6.0 to 20.0) | 1.00 (1.00 to 1.00) | 0.0e+00 | 1.0000 | – |",
        "| torch | fast | 4.0 (2.0 to 5.0) | 3.00 (1.50 to 4.00) | 4.0e-02 | 0.7500 | 0.8000 |",
    ]


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: missing"):
        read_job(tmp_path, tmp_path, [], None)
    labels = {"background": 0, "s": 1}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    with pytest.raises(DataError, match="CASE_0000"):
        read_job(tmp_path, tmp_path, [], None)
    (tmp_path / "a_0000.nii.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="no fold_X"):
        read_job(tmp_path, tmp_path, [], None)
    (tmp_path / "fold_3").mkdir()
    assert read_job(tmp_path, tmp_path, [], None).folds == ("3",)


def test_the_peak_is_the_child_s(tmp_path: Path) -> None:
    # In a process of its own: a child starts with its parent's peak, and the tests' may be large.
    work = [sys.executable, "-c", "x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096])"]
    script = (
        "from pathlib import Path; from ctnet_nnunet.benchmark.predict import peak_of_child;"
        f"print(peak_of_child({work!r}, Path({str(tmp_path)!r})))"
    )
    peak = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 200e6 < peak < 400e6
    with pytest.raises(SetupError, match="gone wrong"):
        peak_of_child([sys.executable, "-c", "raise SystemExit('gone wrong')"], tmp_path)


def test_the_trade_off(tmp_path: Path) -> None:
    """Real commands on a model of two equal folds, whose answer is known."""
    model = write_model(tmp_path / "model", ("a", "b"))
    shutil.copytree(model / "fold_0", model / "fold_1")
    values = np.random.default_rng(0).integers(0, 3, (12, 11, 10)).astype(np.int16)
    for folder, name in ((tmp_path / "in", "x_0000"), (tmp_path / "truth", "x")):
        folder.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / f"{name}.nii.gz"))
    job = read_job(tmp_path / "in", model, [], tmp_path / "truth")
    assert [(row.mirrors, row.step, len(row.folds)) for row in settings_of(job.folds)][1:] == [
        (mirrors, step, folds) for folds in (2, 1) for mirrors in (True, False) for step in (0.5, 0.75)
    ]
    rows = [settings_of(job.folds)[number] for number in (0, -1)]
    measure_trade_off(job, rows, "torch", 1, lambda line: None)
    best, fast = rows
    assert (best.passes, fast.passes) == (2 * 8, 8)
    assert (best.dice_to_best, fast.dice_to_best, fast.dice) == (1.0, 1.0, 1.0)
    assert trade_off_table(rows)[3].startswith(f"| {fast.precision} | no | 0.75 | 1 | 8 |") and fast.precision
