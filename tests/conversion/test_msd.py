"""The msd source: the same voxels as nnU-Net's own converter, and a task that lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.sources.msd import list_msd
from ctnet_nnunet.errors import DataError
from tests.conversion.fakes import SHARED, all_points, label_like, run, scan, values_at, write


def fake_task(root: Path, channels: int = 2) -> Path:
    """Task99_Fake: two labelled cases and one test case, 4D where there are several channels."""
    for name in ("imagesTr/fake_001", "imagesTr/fake_002", "imagesTs/fake_003"):
        volumes = [scan(seed) for seed in range(channels)]
        write(sitk.JoinSeries(volumes) if channels > 1 else volumes[0], root / f"{name}.nii.gz")
    for name in ("fake_001", "fake_002"):
        write(label_like(scan(), (1, 2)), root / f"labelsTr/{name}.nii.gz")
    (root / "imagesTr/._fake_001.nii.gz").write_bytes(b"leftover")
    content = {
        "name": "Fake",
        "modality": {str(index): f"MR{index}" for index in range(channels)},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [
            {"image": f"./imagesTr/fake_00{n}.nii.gz", "label": f"./labelsTr/fake_00{n}.nii.gz"} for n in (1, 2)
        ],
        "test": ["./imagesTs/fake_003.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_voxels_as_the_stock_converter(tmp_path: Path, channels: int) -> None:
    from nnunetv2.dataset_conversion.convert_MSD_dataset import split_4d_nifti

    root = fake_task(tmp_path / "Task99_Fake", channels)
    report = run(list_msd(root, False), tmp_path)
    assert report.exit_status == 0
    stock = tmp_path / "stock"
    stock.mkdir()
    split_4d_nifti(str(root / "imagesTr/fake_001.nii.gz"), str(stock))
    for channel in range(channels):
        reference = sitk.ReadImage(str(stock / f"fake_001_{channel:04d}.nii.gz"))
        ours = sitk.ReadImage(str(tmp_path / f"Dataset501_Test/imagesTr/fake_001_{channel:04d}.nii.gz"))
        assert values_at(ours, all_points(reference)) == values_at(reference, all_points(reference))
    content = json.loads((tmp_path / "Dataset501_Test/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert list(content["channel_names"].values()) == [f"MR{index}" for index in range(channels)]


def test_test_images_go_where_asked(tmp_path: Path) -> None:
    root = fake_task(tmp_path / "in")
    assert [c.destination for c in list_msd(root, False).cases] == ["Tr", "Tr", "Ts"]
    assert [c.destination for c in list_msd(root, True).cases] == ["Tr", "Tr", "Un"]


def change(root: Path, **entries: object) -> None:
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, **entries}))


@pytest.mark.parametrize("image", ["../secret.nii.gz", "/etc/hosts", "./imagesTr/../../x.nii.gz"])
def test_paths_that_lead_out_of_the_folder(tmp_path: Path, image: str) -> None:
    root = fake_task(tmp_path / "in")
    change(root, training=[{"image": image, "label": "./labelsTr/fake_001.nii.gz"}])
    assert "leads out of the task's folder" in list_msd(root, False).refused[image]


def test_what_is_refused(tmp_path: Path) -> None:
    root = fake_task(tmp_path / "in")
    write(scan(), root / "imagesTr/fake_002.nii.gz")
    (root / "labelsTr/fake_001.nii.gz").unlink()
    write(scan(), root / "imagesTr/fake_004.nii.gz")
    refused = list_msd(root, False).refused
    assert refused["./imagesTr/fake_001.nii.gz"] == "./labelsTr/fake_001.nii.gz: no such file; complete the task"
    assert "holds 1 volumes for the 2 channels" in refused["./imagesTr/fake_002.nii.gz"]
    assert "is not in dataset.json" in refused["imagesTr/fake_004.nii.gz"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"modality": {"a": 1}, "training": [], "labels": {}}'])
def test_an_unusable_dataset_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"is no dataset\.json of"):
        list_msd(tmp_path, False)


@pytest.mark.skipif(not (SHARED / "hippocampus").is_dir(), reason="needs ../shared/data/hippocampus")
def test_the_real_hippocampus_task(tmp_path: Path) -> None:
    source, root = SHARED / "hippocampus", tmp_path / "Task04_Hippocampus"
    names = sorted(path.name for path in (source / "images").iterdir())[:6]
    for folder, origin in (("imagesTr", "images"), ("labelsTr", "labels")):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).symlink_to((source / origin / name).resolve())
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": labels, "training": training}))
    report = run(list_msd(root, False), tmp_path)
    assert report.exit_status == 0
    assert len(report.written) == 6
    assert all((outcome.voxels or {}).keys() == {0, 1, 2} for outcome in report.outcomes.values())
