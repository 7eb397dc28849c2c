"""A zip of scans, unpacked as if someone hostile had made it: limits first, then member by member."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from zipfile import ZipInfo

from ctnet_nnunet.errors import DataError

MAX_FILES = 50_000
"""A study of a long cardiac or perfusion examination has some ten thousand."""
MAX_BYTES = 16 * 2**30
MAX_RATIO = 250
"""Unpacked : packed. Scans reach 10 to 50, empty slices more; what deflate can do at most is 1032."""
SMALL_BYTES = 2**22
"""A member below this size cannot hurt, whatever its ratio."""
_BLOCK = 2**20


def is_zip(path: Path) -> bool:
    """A file whose name says so; a folder or an image never is."""
    return path.is_file() and path.name.lower().endswith(".zip")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack into ``folder``; returns the folder that holds the scans: single folders are stepped into, down to BIDS.

    Raises:
        DataError: no zip, damaged, encrypted, too large, or a member that would leave ``folder``, be a link, or be
            written over another one. Nothing of it is used then.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            targets = _judge(archive, members)
            for info, target in zip(members, targets, strict=True):
                _write(opened, info, folder / target, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise DataError(f"{archive}: is no usable zip ({error}); pack it again") from None
    except OSError as error:
        raise DataError(f"{archive}: could not be unpacked ({error.strerror or error}); free disk space") from None
    from ctnet_nnunet.inference.inputs_bids import is_bids

    inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    while len(inside) == 1 and inside[0].is_dir() and not is_bids(folder):
        folder = inside[0]
        inside = list(folder.iterdir())
    return folder


def _judge(archive: Path, members: list[ZipInfo]) -> list[PurePosixPath]:
    """Where each member goes, below the folder; everything is judged before the first byte is written."""
    if not members:
        raise DataError(f"{archive}: holds no file; pack it again")
    if len(members) > MAX_FILES:
        raise DataError(f"{archive}: holds {len(members)} files, above the limit of {MAX_FILES}; split it")
    total = sum(info.file_size for info in members)
    if total > MAX_BYTES:
        raise DataError(f"{archive}: unpacks to {total} bytes, above the limit of {MAX_BYTES}; split it")
    seen: set[str] = set()
    targets = []
    for info in members:
        target = _target(archive, info)
        key = str(target).casefold()  # as file systems that know no case have it
        if key in seen or any(str(parent).casefold() in seen for parent in target.parents if str(parent) != "."):
            raise DataError(f"{archive}: {info.filename!r} would be written over another file; pack it again")
        seen.add(key)
        targets.append(target)
    return targets


def _target(archive: Path, info: ZipInfo) -> PurePosixPath:
    name = info.filename
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts
    if outside or any(ord(letter) < 32 for letter in name):
        raise DataError(f"{archive}: {name!r} points out of the archive; do not trust it")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise DataError(f"{archive}: {name!r} is a link or no plain file; pack the files themselves")
    if info.flag_bits & 0x1:
        raise DataError(f"{archive}: {name!r} is encrypted; pack it without a password")
    if info.file_size > max(SMALL_BYTES, MAX_RATIO * info.compress_size):
        raise DataError(
            f"{archive}: {name!r} unpacks {info.compress_size} bytes to {info.file_size}, as no scan does; "
            "do not trust it"
        )
    return path


def _write(opened: zipfile.ZipFile, info: ZipInfo, target: Path, archive: Path) -> None:
    """One member, never further than the archive's table says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with opened.open(info) as source, target.open("xb") as sink:
        while block := source.read(_BLOCK):
            written += len(block)
            if written > info.file_size:
                raise DataError(f"{archive}: {info.filename!r} holds more than the archive declares; do not trust it")
            sink.write(block)
