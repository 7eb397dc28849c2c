"""Scans that do not fit are refused by name while the rest goes on; without anything to do there is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from ctnet_nnunet.errors import CTNetError, DataError, PlanError, SetupError
from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled
from tests.synthetic import SHAPE, write_image
from tests.unlabeled.conftest import Planned
from tests.unlabeled.test_preprocess import new_scan, run


def test_files_that_are_no_cases(dataset: Planned) -> None:
    folder = dataset.images_un
    for name in ("noch.nii.gz", "short_00.nii.gz", "bad_seg_0000.nii.gz", "tr_001_0000.nii.gz", "extra_0001.nii.gz"):
        new_scan(folder / name, seed=len(name))
    new_scan(folder / "plain_0000.nii")
    (folder / "sub").mkdir()
    for ignored in (".DS_Store", "un_000.json", "README.txt"):
        (folder / ignored).write_text("{}")
    shutil.copy(dataset.raw / "imagesTr" / "tr_002_0000.nii.gz", folder / "renamed_0000.nii.gz")
    summary = run(dataset)
    expected = {
        "noch.nii.gz": "rename it to noch_0000.nii.gz",
        "short_00.nii.gz": "no channel number",
        "bad_seg": "rename the scan",
        "tr_001": "remove it from imagesUn",
        "extra": "channels 0001, the plans want 0000",
        "plain_0000.nii": "does not end in .nii.gz",
        "sub": "is a folder",
        "renamed": "same file as imagesTr/tr_002_0000.nii.gz",
    }
    assert set(summary.failed) == set(expected)
    for name, reason in expected.items():
        assert reason in summary.failed[name]
    assert len(summary.done) == 3
    assert summary.exit_status == 1


def test_scans_that_do_not_fit(dataset: Planned) -> None:
    folder = dataset.images_un
    new_scan(folder / "flat_0000.nii.gz", shape=SHAPE[1:])
    new_scan(folder / "slice_0000.nii.gz", shape=(1, *SHAPE[1:]))
    new_scan(folder / "four_0000.nii.gz", shape=(2, *SHAPE))
    (folder / "dangling_0000.nii.gz").symlink_to(folder / "nowhere")
    write_image(folder / "black_0000.nii.gz", np.zeros(SHAPE, np.float32))
    nan = np.ones(SHAPE, np.float32)
    nan[0, 0, 0], nan[1, 1, 1] = np.nan, 3
    write_image(folder / "nan_0000.nii.gz", nan)
    summary = run(dataset)
    expected = {
        "flat": "scans are 3D",
        "slice": "scans are 3D",
        "four": "dimensions, wanted 2 or 3",
        "dangling": "no such file",
        "black": "all voxels are 0",
        "nan": "NaN or infinite",
    }
    assert set(summary.failed) == set(expected)
    for name, reason in expected.items():
        assert reason in summary.failed[name]
        assert "\n" not in summary.failed[name]
    assert len(summary.done) == 3


def test_channels_that_do_not_fit(copy_of: Callable[[str], Planned]) -> None:
    dataset = copy_of("two_channels")
    folder = dataset.images_un
    (folder / "un_000_0001.nii.gz").unlink()
    new_scan(folder / "un_001_0001.nii.gz", shape=(SHAPE[0] + 1, *SHAPE[1:]))
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_image(folder / "moved_0000.nii.gz", array)
    write_image(folder / "moved_0001.nii.gz", array, (1, 1, 1.2))
    write_image(folder / "dead_0000.nii.gz", array)
    write_image(folder / "dead_0001.nii.gz", np.full(SHAPE, 2, np.float32))
    summary = run(dataset)
    assert summary.done == ["un_002"]
    assert "has the channels 0000, the plans want 0000, 0001" in summary.failed["un_000"]
    assert "another grid" in summary.failed["un_001"]
    assert "another grid" in summary.failed["moved"]
    assert "channel 0001: all voxels are 2" in summary.failed["dead"]


def test_volume_in_a_2d_dataset(copy_of: Callable[[str], Planned]) -> None:
    dataset = copy_of("two_d")
    new_scan(dataset.images_un / "volume_0000.nii.gz")
    summary = run(dataset)
    assert list(summary.failed) == ["volume"]
    assert "scans are 2D" in summary.failed["volume"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((999, "3d_fullres"), DataError, "no dataset 999"),
        (("../510", "3d_fullres"), DataError, "neither a dataset number nor a name"),
        (("Dataset510_else", "3d_fullres"), DataError, "no dataset Dataset510_else"),
        ((510, "3d_lowres"), PlanError, "no configuration '3d_lowres'.*3d_fullres"),
        ((510, "3d_fullres", "CTNetPlans"), PlanError, "no plans 'CTNetPlans'.*found: nnUNetPlans"),
    ],
)
def test_unknown_names(dataset: Planned, arguments: tuple, error: type[CTNetError], message: str) -> None:
    with pytest.raises(error, match=message):
        preprocess_unlabeled(*arguments, processes=0)


def test_ambiguous_number(dataset: Planned) -> None:
    (dataset.raw.parent / "Dataset510_again").mkdir()
    with pytest.raises(DataError, match="ambiguous"):
        run(dataset)
    assert len(preprocess_unlabeled("Dataset510_plain", "3d_fullres", processes=0).done) == 3


def test_foreign_and_broken_plans(dataset: Planned) -> None:
    plans = dataset.plans()
    dataset.plans_file.write_text(json.dumps(plans | {"dataset_name": "Dataset001_Other"}))
    with pytest.raises(PlanError, match="made for 'Dataset001_Other'"):
        run(dataset)
    dataset.plans_file.write_text("{")
    with pytest.raises(PlanError, match="cannot be read as JSON"):
        run(dataset)
    del plans["configurations"]["3d_fullres"]["spacing"]
    dataset.plans_file.write_text(json.dumps(plans))
    with pytest.raises(PlanError, match="lacks 'spacing'"):
        run(dataset)
    plans["configurations"]["3d_fullres"] |= {"spacing": [1, 1, 1], "data_identifier": "../../elsewhere"}
    dataset.plans_file.write_text(json.dumps(plans))
    with pytest.raises(PlanError, match="not a folder name"):
        run(dataset)


def test_missing_dataset_json(dataset: Planned) -> None:
    (dataset.preprocessed / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset\.json is missing; run nnUNetv2_plan_and_preprocess"):
        run(dataset)


def test_environment(dataset: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", "/no/such/folder")
    with pytest.raises(SetupError, match="is not a folder"):
        run(dataset)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(SetupError, match="nnUNet_raw is not set"):
        run(dataset)


def test_dataset_json_that_lists_its_cases(dataset: Planned) -> None:
    """nnU-Net also takes the labelled cases from dataset.json; they may lie anywhere and are protected all the same."""
    file = dataset.preprocessed / "dataset.json"
    content = json.loads(file.read_text())
    entry = {"images": ["imagesTr/tr_000_0000.nii.gz"], "label": "labelsTr/tr_000.nii.gz"}
    file.write_text(json.dumps(content | {"dataset": {"un_002": entry}}))
    shutil.copy(dataset.raw / "imagesTr" / "tr_000_0000.nii.gz", dataset.images_un / "un_001_0000.nii.gz")
    summary = run(dataset)
    assert summary.done == ["un_000"]
    assert "same file as" in summary.failed["un_001"]
    assert "labelled case" in summary.failed["un_002"]
