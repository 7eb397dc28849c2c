"""Zipped series that would leave their folder or fill the disk."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.bad_files.base import Bad, Good, predict, series_image
from tests.bad_files.bundles import flagged_encrypted
from tests.conversion.fake_dicom import write_series


def zipped(
    name: str,
    what: str,
    add: Callable[[zipfile.ZipFile], object] = lambda _: None,
    change: Callable[[bytes], bytes] = bytes,
) -> Bad:
    """A zip of a good series with a member more, or with other bytes."""

    def make(folder: Path, good: Good) -> list[str]:
        path = folder / "series.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in write_series(series_image(), good.folder / "zipped", SeriesInstanceUID="1.2.3"):
                archive.write(file, f"series/{file.name}")
            add(archive)
        path.write_bytes(change(path.read_bytes()))
        return predict(folder, path, good.model)

    return Bad(f"{name}.zip", what, make)


def _link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("series/link.dcm")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def _twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("series/000_0000.dcm", b"another")


ZIPS = [
    zipped("traversal", "a member ../../escape.dcm", lambda a: a.writestr("../../escape.dcm", b"x")),
    zipped("absolute", "a member /tmp/escape.dcm", lambda a: a.writestr("/tmp/escape.dcm", b"x")),
    zipped("link", "a symbolic link to /etc/passwd", _link),
    zipped("twice", "a slice twice, the second another", _twice),
    zipped("bomb", "a member of 500 MB zeros", lambda a: a.writestr("series/big.dcm", bytes(500 * 2**20))),
    zipped("encrypted", "a member marked as encrypted", change=flagged_encrypted),
    zipped("half", "its first half", change=lambda data: data[: len(data) // 2]),
    zipped("empty", "nothing in it", change=lambda _: b""),
]
