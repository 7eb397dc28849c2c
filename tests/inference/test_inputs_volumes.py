"""4D files: a volume is a scan, where the user says which."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.errors import DataError, SetupError
from tests.inference.test_run import predict
from tests.inference.threshold_model import write_model


def test_volumes_of_a_time_series(tmp_path: Path) -> None:
    """Each volume of a 4D file is predicted on its own grid; without a choice the line names the option."""
    model = write_model(tmp_path / "model", ("a", "b"))
    values = np.random.default_rng(0).integers(0, 3, (3, 8, 9, 10)).astype(np.int16)
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in values]), str(tmp_path / "s.nii.gz"))
    words = ("-i", tmp_path / "s.nii.gz", "-m", model)
    with pytest.raises(DataError, match="series of 3 volumes; choose with --volume 0 to 2, first or all"):
        predict(*words, "-o", tmp_path / "none")
    with pytest.raises(DataError, match="has no volume 3"):
        predict(*words, "-o", tmp_path / "none", "--volume", "3")
    with pytest.raises(SetupError, match="a number from 0 on"):
        predict(*words, "-o", tmp_path / "none", "--volume", "mean")
    assert not (tmp_path / "none").exists()
    predict(*words, "-o", tmp_path / "one", "--volume", "1")
    _, text = predict(*words, "-o", tmp_path / "out", "--volume", "all")
    assert "s_t2: volume 2 of s.nii.gz" in text
    for file, index in (("one/s", 1), ("out/s_t0", 0), ("out/s_t1", 1), ("out/s_t2", 2)):
        labels = sitk.ReadImage(str(tmp_path / f"{file}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), values[index])
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["cases"]["s"]["inputs"][0]["volume"] == 1
