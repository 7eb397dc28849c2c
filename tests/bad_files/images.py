"""Scans that no reader should trust."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.bad_files.base import Bad, Good, predict

NAN, INF = float("nan"), float("inf")
HEADER = 352


def at(offset: int, layout: str, *values: float) -> Callable[[bytearray], object]:
    return lambda raw: struct.pack_into(layout, raw, offset, *values)


def nifti(name: str, what: str, *changes: Callable[[bytearray], object]) -> Bad:
    """The good scan with other bytes in its uncompressed file."""

    def make(folder: Path, good: Good) -> list[str]:
        raw = bytearray(gzip.decompress(good.scan.read_bytes()))
        struct.pack_into("<2h", raw, 252, 0, 1)  # sform only: the axes are where the changes write them
        for change in changes:
            change(raw)
        path = folder / "scan.nii.gz"
        path.write_bytes(gzip.compress(bytes(raw), mtime=0))
        return predict(folder, path, good.model)

    return Bad(f"{name}.nii.gz", what, make)


def compressed(name: str, what: str, change: Callable[[bytes], bytes]) -> Bad:
    """The good scan with other bytes in its compressed file."""

    def make(folder: Path, good: Good) -> list[str]:
        path = folder / "scan.nii.gz"
        path.write_bytes(change(good.scan.read_bytes()))
        return predict(folder, path, good.model)

    return Bad(f"{name}.nii.gz", what, make)


def bomb(edge: int) -> Callable[[bytes], bytes]:
    """A scan of ``edge``³ zeros as bytes, a thousandth of it on disk."""

    def make(good: bytes) -> bytes:
        raw = bytearray(gzip.decompress(good))[:HEADER]
        struct.pack_into("<3h", raw, 42, edge, edge, edge)
        struct.pack_into("<2h", raw, 70, 2, 8)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        start = packer.compress(bytes(raw)) + packer.flush(zlib.Z_FULL_FLUSH)
        block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
        # Each block stands alone, so that one can be repeated; nothing reads as far as the checksum.
        blocks = block * (edge**3 // 2**20 + 1)
        return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start + blocks + packer.flush() + bytes(8)

    return make


def flipped(data: bytes) -> bytes:
    return data[:-6] + bytes([data[-6] ^ 0xFF]) + data[-5:]


def other_format(name: str, what: str, ending: str, content: Callable[[Good], bytes]) -> Bad:
    """A file of another format, for a model that was trained on that format."""

    def make(folder: Path, good: Good) -> list[str]:
        from tests.bad_files.base import with_model

        def change(model: Path) -> None:
            dataset = json.loads((model / "dataset.json").read_text())
            (model / "dataset.json").write_text(json.dumps(dataset | {"file_ending": ending}))

        words = with_model(folder, good, change)
        path = folder / f"scan{ending}"
        path.write_bytes(content(good))
        words[words.index("-i") + 1] = str(path)
        return words

    return Bad(f"{name}{ending}", what, make)


def _meta(size: str, source: str, voxels: bytes = bytes(64)) -> bytes:
    lines = ("ObjectType = Image", "NDims = 3", f"DimSize = {size}", "ElementType = MET_UCHAR")
    return "\n".join([*lines, f"ElementDataFile = {source}", ""]).encode() + voxels


def _nrrd(extra: str, sizes: str = "4 4 4", voxels: bytes = bytes(range(64))) -> bytes:
    lines = ("NRRD0004", "type: uchar", "dimension: 3", f"sizes: {sizes}", "encoding: raw", "endian: little", extra)
    return "\n".join(line for line in lines if line).encode() + b"\n\n" + voxels


def _voxels(value: float) -> Callable[[bytearray], object]:
    return at(HEADER, "<f", value)


def _constant(raw: bytearray) -> None:
    raw[HEADER:] = np.full((len(raw) - HEADER) // 4, 7.0, np.float32).tobytes()


def _nifti2(good: bytes) -> bytes:
    raw = bytearray(544 + 64)
    struct.pack_into("<i8s2h8q", raw, 0, 540, b"n+2\0\r\n\x1a\n", 16, 32, 3, 10**6, 10**6, 10**6, 1, 1, 1, 1)
    struct.pack_into("<8d", raw, 104, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<q", raw, 168, 544)
    return gzip.compress(bytes(raw), mtime=0)


def _folder(folder: Path, good: Good) -> list[str]:
    (folder / "scan.nii.gz").mkdir()
    return predict(folder, folder / "scan.nii.gz", good.model)


def _dangling(folder: Path, good: Good) -> list[str]:
    (folder / "scan.nii.gz").symlink_to("nowhere.nii.gz")
    return predict(folder, folder / "scan.nii.gz", good.model)


def _itk_gipl(good: Good) -> bytes:
    path = good.folder / "whole.gipl"
    sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(good.scan)), sitk.sitkInt16), str(path))
    return path.read_bytes()[:-100]


IMAGES = [
    compressed("empty", "nothing in it", lambda _: b""),
    compressed("text", "a text", lambda _: b"no scan at all"),
    compressed("packed_text", "a compressed text", lambda _: gzip.compress(b"no scan at all", mtime=0)),
    compressed("half", "its first half", lambda data: data[: len(data) // 2]),
    compressed("cut_checksum", "without its last 4 bytes", lambda data: data[:-4]),
    compressed("flipped", "one byte of its checksum changed", flipped),
    compressed("bomb_1000", "1 MB that unpack to 1000³ zeros", bomb(1000)),
    compressed("bomb_1600", "4 MB that unpack to 1600³ zeros", bomb(1600)),
    compressed("nifti2_huge", "NIfTI-2 of 10¹⁸ voxels", _nifti2),
    nifti("54_terabytes", "declares 30000³ voxels", at(42, "<3h", 30000, 30000, 30000)),
    nifti("twice_the_slices", "declares twice its slices", at(46, "<h", 24)),
    nifti("zero_spacing", "a spacing of 0", at(80, "<f", 0.0)),
    nifti("negative_spacing", "a spacing of −1 mm", at(84, "<f", -1.0)),
    nifti("nan_spacing", "a spacing of NaN", at(88, "<f", NAN)),
    nifti("infinite_spacing", "an infinite spacing", at(80, "<f", INF)),
    nifti("huge_spacing", "voxels of 10 km", at(80, "<3f", 1e7, 1e7, 1e7), at(280, "<f", 1e7), at(300, "<f", 1e7),
          at(320, "<f", 1e7)),
    nifti("nan_axes", "NaN in its axes", at(280, "<f", NAN)),
    nifti("sheared", "axes that are not at right angles", at(284, "<f", 0.5)),
    nifti("flat_axes", "axes that are all zero", at(280, "<12f", *[0.0] * 12)),
    nifti("infinite_origin", "an infinite origin", at(292, "<f", INF)),
    nifti("negative_size", "a size of −8", at(42, "<h", -8)),
    nifti("no_dimension", "0 dimensions", at(40, "<h", 0)),
    nifti("many_dimensions", "200 dimensions", at(40, "<h", 200)),
    nifti("time_series", "a fourth axis", at(40, "<5h", 4, 8, 10, 6, 2)),
    nifti("five_dimensions", "a fifth axis", at(40, "<6h", 5, 8, 10, 4, 1, 3)),
    nifti("colours", "RGB voxels", at(70, "<h", 128)),
    nifti("complex", "complex voxels", at(70, "<h", 32)),
    nifti("unknown_type", "voxel type 9999", at(70, "<h", 9999)),
    nifti("voxels_behind_the_end", "voxels behind the end of the file", at(108, "<f", 1e9)),
    nifti("voxels_at_nan", "voxels at byte NaN", at(108, "<f", NAN)),
    nifti("voxels_before_the_start", "voxels at byte −400", at(108, "<f", -400.0)),
    nifti("scaled_to_infinity", "a slope of 10³⁸ on large voxels", at(112, "<f", 1e38), _voxels(1e30)),
    nifti("nan_voxel", "a NaN voxel", _voxels(NAN)),
    nifti("infinite_voxel", "an infinite voxel", _voxels(INF)),
    nifti("constant", "the same value everywhere", _constant),
    nifti("wrong_magic", "another format's magic", at(344, "4s", b"abcd")),  # type: ignore[arg-type]
    Bad("folder.nii.gz", "a folder of that name", _folder),
    Bad("dangling.nii.gz", "a link to nothing", _dangling),
    other_format("huge", "declares 10¹⁵ voxels", ".mha", lambda _: _meta("100000 100000 100000", "LOCAL")),
    other_format("elsewhere", "voxels in /etc/passwd", ".mha", lambda _: _meta("4 4 4", "/etc/passwd")),
    other_format("cut", "fewer voxels than declared", ".mha", lambda _: _meta("40 40 40", "LOCAL")),
    other_format("elsewhere", "voxels in /etc/passwd", ".nrrd", lambda _: _nrrd("data file: /etc/passwd", voxels=b"")),
    other_format("huge", "declares 10¹⁵ voxels", ".nrrd", lambda _: _nrrd("", "100000 100000 100000")),
    other_format("nan_axes", "NaN in its axes", ".nrrd",
                 lambda _: _nrrd("space: left-posterior-superior\nspace directions: (nan,0,0) (0,1,0) (0,0,1)")),
    other_format("cut", "without its last 100 bytes", ".gipl", _itk_gipl),
]  # fmt: skip
