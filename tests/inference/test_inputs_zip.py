"""Zips: what is unpacked, and what is refused before a byte of it lies anywhere."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference import inputs_zip
from ctnet_nnunet.inference.inputs import Wanted, find_cases
from ctnet_nnunet.inference.inputs_zip import unpack


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def refused(file: Path, words: str) -> None:
    target = file.parent / "target"
    target.mkdir()
    with pytest.raises(DataError, match=words) as caught:
        unpack(file, target)
    assert "\n" not in str(caught.value)
    assert list(target.iterdir()) == []
    assert not (file.parent / "evil").exists()


def test_a_zip_of_a_folder(tmp_path: Path) -> None:
    file = archive(tmp_path / "s.zip", {"top/p_0000.nii.gz": b"a", "top/p_0001.nii.gz": b"b", "__MACOSX/x": b""})
    workspace = tmp_path / "work"
    workspace.mkdir()
    found = find_cases(file, Wanted(["a", "b"], ".nii.gz"), workspace)
    assert [image.path.read_bytes() for image in found.cases[0].images] == [b"a", b"b"]
    again = tmp_path / "again"
    again.mkdir()
    broken = find_cases(archive(tmp_path / "t.zip", {"p_0000.nii.gz": b""}), Wanted(["a", "b"], ".nii.gz"), again)
    assert str(again) not in broken.failures["p"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil", "a\x01b"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    refused(archive(tmp_path / "s.zip", {"good": b"x", name: b"x"}), "points out")


@pytest.mark.parametrize("names", [("a", "A"), ("a", "a/b"), ("a/b", "a/B")])
def test_members_over_each_other(tmp_path: Path, names: tuple[str, str]) -> None:
    refused(archive(tmp_path / "s.zip", dict.fromkeys(names, b"x")), "over another file")


def test_links_encryption_and_emptiness(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as opened:
        opened.writestr(info, "/etc/passwd")
    refused(tmp_path / "s.zip", "link or no plain file")
    (tmp_path / "target").rmdir()
    refused(archive(tmp_path / "empty.zip", {}), "holds no file")
    (tmp_path / "target").rmdir()
    locked = archive(tmp_path / "locked.zip", {"a": b"x"}, zipfile.ZIP_STORED)
    data = bytearray(locked.read_bytes())
    data[6] |= 1  # the local header's and the table's flag: encrypted
    data[data.index(b"PK\x01\x02") + 8] |= 1
    locked.write_bytes(data)
    refused(locked, "encrypted")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(archive(tmp_path / "ratio.zip", {"a": bytes(2**23)}), "as no scan does")
    monkeypatch.setattr(inputs_zip, "MAX_BYTES", 100)
    (tmp_path / "target").rmdir()
    refused(archive(tmp_path / "size.zip", {"a": b"x" * 60, "b": b"y" * 60}), "above the limit of 100")
    monkeypatch.setattr(inputs_zip, "MAX_FILES", 1)
    (tmp_path / "target").rmdir()
    refused(archive(tmp_path / "count.zip", {"a": b"", "b": b""}), "above the limit of 1")


def test_damage(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"no zip at all")
    refused(tmp_path / "no.zip", "no usable zip")
    file = archive(tmp_path / "crc.zip", {"a": b"hello hello"}, zipfile.ZIP_STORED)
    file.write_bytes(file.read_bytes().replace(b"hello hello", b"hellO hello"))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no usable zip"):
        unpack(file, tmp_path / "other")
