"""The shipped scans: whole, licensed, in disjoint parts, and turned into the dataset that nnU-Net wants."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ctnet_nnunet.demo.dataset import DATASET_NAME, NEW_LABELS, NEW_SCANS, build_raw_dataset, read_roles, shipped_data
from ctnet_nnunet.demo.select_cases import BLOCKS, ENDING, choose, copy_cases
from ctnet_nnunet.errors import DataError


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_shipped_scans_are_whole_and_named_with_their_licence() -> None:
    data = shipped_data()
    roles = read_roles(data)

    assert [list(roles.values()).count(role) for role, _ in BLOCKS] == [10, 22, 8]
    for folder in ("images", "labels"):
        assert _names(data / folder) == {f"{case}{ENDING}" for case in roles}
    for name in ("README.md", "LICENSE.txt"):
        text = (data / name).read_text()
        assert "CC BY-SA 4.0" in text
        assert "1902.09063" in text


def test_raw_dataset(tmp_path: Path) -> None:
    build_raw_dataset(tmp_path)
    raw = tmp_path / "nnUNet_raw" / DATASET_NAME

    trained, unlabelled = _names(raw / "imagesTr"), _names(raw / "imagesUn")
    new = _names(tmp_path / NEW_SCANS)
    assert (len(trained), len(unlabelled), len(new)) == (10, 22, 8)
    assert not (trained & unlabelled | trained & new | unlabelled & new)
    assert {name.replace(ENDING, f"_0000{ENDING}") for name in _names(raw / "labelsTr")} == trained
    assert {name.replace(ENDING, f"_0000{ENDING}") for name in _names(tmp_path / NEW_LABELS)} == new
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 10
    assert _names(tmp_path / "nnUNet_raw") == {DATASET_NAME}


def test_building_again_replaces_what_was_there(tmp_path: Path) -> None:
    build_raw_dataset(tmp_path)
    stray = tmp_path / "nnUNet_raw" / DATASET_NAME / "imagesTr" / f"stray_0000{ENDING}"
    stray.write_bytes(b"")

    build_raw_dataset(tmp_path)

    assert not stray.exists()


def test_a_damaged_scan_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shipped_data(), data)
    victim = data / "images" / f"hippocampus_001{ENDING}"
    victim.write_bytes(victim.read_bytes()[:-1])

    with pytest.raises(DataError, match="hippocampus_001"):
        read_roles(data)


def test_the_choice_can_be_made_again(tmp_path: Path) -> None:
    copy_cases(shipped_data(), tmp_path)

    assert (tmp_path / "cases.json").read_text() == (shipped_data() / "cases.json").read_text()
    with pytest.raises(DataError, match="found 3 cases"):
        choose(["a", "b", "c"])
