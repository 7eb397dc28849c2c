"""MetaImage and NRRD: headers of text, which may place the voxels in any file of the machine, or promise too many."""

from __future__ import annotations

import re
from pathlib import Path

from ctnet_nnunet.errors import DataError

ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")
_HEADER_BYTES = 65536


def has_text_header(path: Path) -> bool:
    """True for the endings that this module judges."""
    return path.name.lower().endswith(ENDINGS)


def check_text_header(path: Path, voxel_bytes: int) -> None:
    """Judge where a header says its voxels are; ``voxel_bytes`` is what its size and type need.

    Raises:
        DataError: voxels outside of the file's folder; a file shorter than its header promises.
    """
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    meta = path.name.lower().endswith((".mha", ".mhd"))
    header = _meta_header(start) if meta else re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0]
    fields = {
        key.strip().lower().replace(b" ", b""): value.strip()
        for key, value in re.findall(rb"^([^:=\n#]+)(?:[:=]=?)([^\n]*)$", header, re.MULTILINE)
    }
    file = fields.get(b"elementdatafile" if meta else b"datafile", b"LOCAL").decode("utf-8", "replace")
    if file.upper() != "LOCAL":
        if re.search(r"[/\\%\s]|^\.\.?$|^LIST$", file):
            raise DataError(f"{path}: keeps its voxels elsewhere ({file[:80]!r}); write it as one file")
        return
    packed = fields.get(b"compresseddata", b"").lower() == b"true" or fields.get(b"encoding", b"raw") != b"raw"
    there = path.stat().st_size - len(header)
    if not packed and there < voxel_bytes:
        raise DataError(f"{path}: the header promises {voxel_bytes} bytes, the file has {there}; copy it again")


def _meta_header(start: bytes) -> bytes:
    """Up to the line of ElementDataFile, which is the last."""
    found = re.search(rb"^\s*ElementDataFile[^\n]*", start, re.MULTILINE)
    return start[: found.end()] if found else start
