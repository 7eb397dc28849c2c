"""`ctnet benchmark cross-modality`: what it refuses before it trains, the crop, and the tables of what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from ctnet_nnunet.benchmark.cross_modality import (
    ARMS,
    EARLY,
    FROM_STAGE_ONE,
    KAIMING,
    TRANSITION_LOSSES,
    Figures,
    Runs,
    _box_around,
    _course,
    _make_dataset,
)
from ctnet_nnunet.benchmark.cross_modality_tables import tables
from ctnet_nnunet.cli.main import app
from ctnet_nnunet.errors import CTNetError


def test_tables() -> None:
    """Four epochs a quarter each; both starts on two trainings, the second one won by Kaiming's at the end."""
    figures = Figures()
    for name in TRANSITION_LOSSES:
        figures.transition[name] = [[4.0, 3.0, 2.0, 1.0], [6.0, 5.0, 4.0, 3.0]]
    figures.losses = {
        FROM_STAGE_ONE: [[0.8, 0.6, 0.4, 0.2], [0.8, 0.6, 0.4, 0.4]],
        KAIMING: [[0.9, 0.7, 0.5, 0.3], [0.9, 0.7, 0.3, 0.3]],
        EARLY: [[1.0, 0.9, 0.8, 0.7], [1.0, 0.9, 0.8, 0.5]],
    }
    figures.dice = {arm: [0.5, 0.7] for arm in ARMS}
    written = tables(figures)
    assert "| cycle_a | 5.000 (4.000 to 6.000) | 4.000 (3.000 to 5.000) | 3.000 (2.000 to 4.000) | " in written
    assert "| 0.600 (0.500 to 0.700) | 0.600 (0.500 to 0.700) |\n" in written.split(EARLY)[1]
    assert written.endswith("From CMFT below Kaiming's in 2, 2, 1, 1 of 2 trainings, quarter by quarter.")
    lines = [line.count("|") for line in written.splitlines() if line.startswith("|")]
    assert lines == [6] * 8 + [7] * 5


def test_scans_are_cropped_around_their_labels(tmp_path: Path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    for folder in ("images", "labels"):
        (data / folder).mkdir(parents=True)
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}))
    label = np.zeros((20, 18, 16), np.uint8)
    label[15:18, 8:10, 0:2] = 1
    image = np.arange(label.size, dtype=np.float32).reshape(label.shape)
    sitk.WriteImage(sitk.GetImageFromArray(label), str(data / "labels" / "c.nii.gz"))
    for channel in (0, 1):
        sitk.WriteImage(sitk.GetImageFromArray(image + channel), str(data / "images" / f"c_000{channel}.nii.gz"))
    _make_dataset(Runs(data, work, (8, 10, 32), (4, 4, 4), 2, 4, 1, 1e-4, 1, "cpu"), ["c"])
    raw = next((work / "nnUNet_raw").iterdir())
    cropped = sitk.ReadImage(str(raw / "labelsTr" / "c.nii.gz"))
    assert cropped.GetSize() == (16, 10, 8) and cropped.GetOrigin() == (0.0, 3.0, 12.0)
    assert sitk.GetArrayFromImage(cropped).sum() == label.sum()
    second = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / "c_0001.nii.gz")))
    assert np.array_equal(second, image[12:20, 3:13] + 1)
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 1


def test_values_are_read_off_the_log_once_an_epoch(tmp_path: Path) -> None:
    lines = []
    for epoch in (1, 2):
        lines += [f"12:00: train loss {epoch}.5, cycle_a 0.{epoch}", f"12:00: watched loss 9.0, cycle_a 9.{epoch}"]
        lines += [f"12:00: train_loss {epoch}.25"]
    (tmp_path / "training_log_1.txt").write_text("\n".join(lines))
    assert _course(tmp_path, "cycle_a", behind="train loss") == [0.1, 0.2]
    assert _course(tmp_path, "loss", behind="train loss") == [1.5, 2.5]
    assert _course(tmp_path, "train_loss") == [1.25, 2.25]


def test_the_box_of_a_scan_without_labels_lies_in_its_middle() -> None:
    assert _box_around(np.zeros((20, 18, 16)), (8, 10, 32)) == ([0, 4, 6], [16, 10, 8])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--patch", "48,48"], "--patch '48,48': three numbers"),
        (["--box", "a,b,c"], "--box 'a,b,c': three numbers"),
        ([], "two labelled scans, there are 0"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path: Path, words: list[str], message: str) -> None:
    work = tmp_path / "work"
    result = CliRunner().invoke(app, ["benchmark", "cross-modality", str(tmp_path), "-o", str(work), *words])
    assert isinstance(result.exception, CTNetError) and message in str(result.exception)
    assert not work.exists()
