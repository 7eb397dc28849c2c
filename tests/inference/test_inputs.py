"""Which files become which cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference.inputs import Case, Found, Wanted, find_cases


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def find(source: Path, channels: int, workspace: Path | None = None) -> Found:
    names = [f"channel{number}" for number in range(channels)]
    return find_cases(source, Wanted(names, ".nii.gz"), workspace or source.parent)


def files(case: Case) -> list[str]:
    return [image.path.name for image in case.images]


def test_nnunet_naming(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", *(f"p{case}_{channel:04d}.nii.gz" for case in (1, 2) for channel in (0, 1)))
    touch(folder, "notes.txt", ".hidden_0000.nii.gz")
    found = find(folder, 2)
    assert found.failures == {}
    assert [(case.name, files(case)) for case in found.cases] == [
        (f"p{n}", [f"p{n}_0000.nii.gz", f"p{n}_0001.nii.gz"]) for n in (1, 2)
    ]


def test_any_names_are_cases_of_a_one_channel_model(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "t1.nii.gz", "brain_0000.nii.gz")
    assert [case.name for case in find(folder, 1).cases] == ["brain_0000", "t1"]
    with pytest.raises(DataError, match="wants 2 channels"):
        find(folder, 2)


def test_a_missing_or_surplus_channel_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "p_0000.nii.gz", "p_0001.nii.gz", "q_0001.nii.gz")
    touch(folder, "r_0000.nii.gz", "r_0001.nii.gz", "r_0002.nii.gz")
    found = find(folder, 2)
    assert [case.name for case in found.cases] == ["p"]
    assert "0000 is missing" in found.failures["q"]
    assert "0002 is one too many" in found.failures["r"]


def test_a_single_file_brings_its_other_channels(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "p_0000.nii.gz", "p_0001.nii.gz", "q_0000.nii.gz")
    (case,) = find(folder / "p_0000.nii.gz", 2).cases
    assert files(case) == ["p_0000.nii.gz", "p_0001.nii.gz"]
    (case,) = find(folder / "q_0000.nii.gz", 1).cases
    assert case.name == "q"


@pytest.mark.parametrize("name", ["none", "empty"])
def test_nothing_to_predict(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name):
        find(tmp_path / name, 1)
