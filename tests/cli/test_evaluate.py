"""``ctnet evaluate`` and ``ctnet compare`` on label maps on disk, by the command line's own entry."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.stats import wilcoxon
from typer.testing import CliRunner

from ctnet_nnunet.cli.main import app
from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from ctnet_nnunet.evaluation.tables import COLUMNS

LABELS = {"background": 0, "left": 1, "right": 2}
SPACING = (1.0, 2.0, 3.0)


def write(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(file))


def make(root: Path, shifts: dict[str, int]) -> tuple[Path, Path]:
    """Two boxes a case; in the predictions the left one is shifted by that many voxels of 1 mm."""
    for case, shift in shifts.items():
        truth = np.zeros((10, 10, 30), int)
        truth[2:6, 2:6, 4:12], truth[2:6, 2:6, 18:26] = 1, 2
        predicted = np.where(truth == 2, 2, 0)
        predicted[2:6, 2:6, 4 + shift : 12 + shift] = 1
        write(root / "truth" / f"{case}.nii.gz", truth)
        write(root / "predicted" / f"{case}.nii.gz", predicted)
    content = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    (root / "predicted" / "dataset.json").write_text(json.dumps(content))
    return root / "predicted", root / "truth"


def ctnet(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, CTNetError):
        raise result.exception
    return result.exit_code, result.output


def test_scores_by_hand(tmp_path: Path) -> None:
    predictions, truth = make(tmp_path, {"a": 0, "b": 2})
    status, text = ctnet("evaluate", predictions, truth, "-o", tmp_path / "out", "--tolerance", "2")
    assert status == 0
    assert "2 cases: Dice 0.938" in text
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = {(row["case"], row["structure"]): row for row in csv.DictReader(file)}
    assert tuple(next(iter(rows.values()))) == COLUMNS
    moved = rows["b", "left"]
    assert float(moved["dice"]) == pytest.approx(0.75)
    assert float(moved["jaccard"]) == pytest.approx(0.6)
    assert float(moved["hd95_mm"]) == pytest.approx(2.0)
    assert float(moved["nsd"]) == 1.0
    assert float(moved["truth_ml"]) == pytest.approx(4 * 4 * 8 * 6 / 1000)
    assert float(rows["a", "left"]["dice"]) == float(rows["b", "right"]["dice"]) == 1.0
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["structures"]["left"]["dice"]["mean"] == pytest.approx(0.875)
    assert content["structures"]["left"]["cases"] == {"ok": 2, "missed": 0, "spurious": 0, "absent": 0}
    assert content["settings"]["nsd_tolerance_mm"] == 2.0
    assert "within 2.0&nbsp;mm" in (tmp_path / "out" / "report.html").read_text()


def test_a_failing_case_is_named_and_the_others_are_scored(tmp_path: Path) -> None:
    predictions, truth = make(tmp_path, {"a": 0, "b": 2, "c": 1})
    (predictions / "b.nii.gz").unlink()
    write(predictions / "c.nii.gz", np.full((10, 10, 30), 7))
    status, text = ctnet("evaluate", predictions, truth, "-o", tmp_path / "out")
    assert status == 1
    assert "1 cases" in text and "failed: b:" in text and "failed: c:" in text and "7" in text


def test_refusals(tmp_path: Path) -> None:
    predictions, truth = make(tmp_path, {"a": 0})
    ctnet("evaluate", predictions, truth, "-o", tmp_path / "out")
    with pytest.raises(SetupError, match="exists already"):
        ctnet("evaluate", predictions, truth, "-o", tmp_path / "out")
    ctnet("evaluate", predictions, truth, "-o", tmp_path / "out", "--force")
    with pytest.raises(SetupError, match="is no folder"):
        ctnet("evaluate", predictions / "a.nii.gz", truth, "-o", tmp_path / "two")
    with pytest.raises(DataError, match=r"dataset\.json"):
        ctnet("evaluate", truth, predictions, "-o", tmp_path / "two")
    for file in truth.iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no case could be scored; the first, a:"):
        ctnet("evaluate", predictions, truth, "-o", tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_compare_agrees_with_scipy(tmp_path: Path) -> None:
    cases = [f"c{number}" for number in range(6)]
    shifts = {"A": [0, 1, 0, 2, 1, 0], "B": [1, 1, 3, 3, 2, 2]}
    for name, values in shifts.items():
        predictions, truth = make(tmp_path / name, dict(zip(cases, values, strict=True)))
        ctnet("evaluate", predictions, truth, "-o", tmp_path / f"out_{name}")
    outs = [tmp_path / "out_A", tmp_path / "out_B" / "scores.csv"]
    status, _ = ctnet("compare", *outs, "-o", tmp_path / "cmp", "--names", "A,B")
    assert status == 0
    with (tmp_path / "cmp" / "compare.csv").open() as file:
        rows = {row["structure"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["mean of structures", "left", "right"]
    differences = [(b - a) / 8 for a, b in zip(shifts["A"], shifts["B"], strict=True)]
    assert float(rows["left"]["mean_difference"]) == pytest.approx(np.mean(differences), abs=1e-5)
    assert float(rows["left"]["p"]) == pytest.approx(wilcoxon(differences).pvalue, abs=1e-5)
    assert float(rows["left"]["effect"]) == 1.0
    assert float(rows["right"]["p"]) == 1.0 and float(rows["right"]["effect"]) == 0.0
    assert float(rows["left"]["p_corrected"]) == pytest.approx(min(1, 3 * float(rows["left"]["p"])), abs=1e-4)
    page = (tmp_path / "cmp" / "compare.html").read_text()
    assert "A · B" in page and "<script" not in page


def test_compare_refusals(tmp_path: Path) -> None:
    predictions, truth = make(tmp_path / "A", {"a": 0})
    ctnet("evaluate", predictions, truth, "-o", tmp_path / "one")
    predictions, truth = make(tmp_path / "B", {"b": 0})
    ctnet("evaluate", predictions, truth, "-o", tmp_path / "other")
    one = tmp_path / "one"
    bad = tmp_path / "bad.csv"
    bad.write_text("case,dice\na,1\n")
    twice = tmp_path / "twice.csv"
    lines = (one / "scores.csv").read_text().splitlines()
    twice.write_text("\n".join([*lines, lines[1]]))
    other_structures = tmp_path / "others.csv"
    other_structures.write_text("\n".join([lines[0], lines[1].replace("left", "middle")]))
    for words, expected in (
        ([one], "two or more"),
        ([one, one], "different names"),
        ([one, tmp_path / "other"], "share no case"),
        ([one, bad], "lacks"),
        ([one, twice], "twice"),
        ([one, other_structures], "other structures"),
        ([one, tmp_path / "none"], "cannot be read"),
        ([one, tmp_path / "other", "--metric", "iou"], "one of dice"),
    ):
        with pytest.raises(CTNetError, match=expected):
            ctnet("compare", *words, "-o", tmp_path / "cmp")
    assert not (tmp_path / "cmp").exists()
