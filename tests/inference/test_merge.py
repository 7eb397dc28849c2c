"""Parts of a batch, predicted apart with ``--only``, become what one run leaves."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.inference.merge import merged_record, move_case, read_part, write_merged
from tests.inference.test_run import predict, scans

__all__ = ["scans"]


def test_two_parts_are_one_batch(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    names = [file.name.removesuffix(".nii.gz") for file in sorted(scans.iterdir())]
    shutil.copy(scans / f"{names[0]}.nii.gz", scans / f"{names[0]}_entropy.nii.gz")  # a name that looks like a map
    cases = sorted([*names, f"{names[0]}_entropy"])
    words = ("-i", scans, "-m", model_folder, "--speed", "fast", "-f", "0", "--maps", "--engine", "torch")
    with pytest.raises(DataError, match=r"--only nobody: no such scan .* it holds"):
        predict(*words, "-o", tmp_path / "one", "--only", "nobody")
    predict(*words, "-o", tmp_path / "one")
    predict(*words, "-o", tmp_path / "a", "--only", cases[0], "--report")
    predict(*words, "-o", tmp_path / "b", "--only", *cases[1:])
    parts = [part for part in map(read_part, (tmp_path / "a", tmp_path / "b")) if part is not None]
    assert [part.cases(report=False) for part in parts] == [cases[:1], cases[1:]]
    assert [part.cases(report=True) for part in parts] == [cases[:1], []], "without a page a case is not whole"

    out = tmp_path / "out"
    for part in parts:
        for case in part.cases(report=False):
            move_case(part, case, out, ".nii.gz")
    volumes = parts[0].volumes | parts[1].volumes
    write_merged(out, merged_record(parts, cases, {"x": "broken"}, {"more": 1}), volumes)
    for name in [*(f"{case}{ending}.nii.gz" for case in cases for ending in ("", "_disagreement"))]:
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert list(csv.reader((out / "volumes.csv").open())) == list(csv.reader((tmp_path / "one" / "volumes.csv").open()))
    record, whole = (json.loads((folder / "run.json").read_text()) for folder in (out, tmp_path / "one"))
    assert list(record["cases"]) == list(whole["cases"]) and record["model"] == whole["model"]
    assert (record["failures"], record["more"]) == ({"x": "broken"}, 1)


def test_a_record_that_is_none(tmp_path: Path) -> None:
    assert read_part(tmp_path) is None
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "volumes.json").write_text("{}")
    with pytest.raises(SetupError, match="no record of ctnet predict"):
        read_part(tmp_path)
