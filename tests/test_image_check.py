"""The judge of image files: a corpus of broken files, each refused by name; ITK alone reads most of them in silence."""

from __future__ import annotations

import gzip
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.image_check import check_image_file, read_image_header
from tests.synthetic import write_image

ARRAY = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)


def _at(offset: int, layout: str, *values: float) -> Callable[[bytearray], None]:
    return lambda raw: struct.pack_into(layout, raw, offset, *values)


# Byte offsets of the NIfTI-1 header: dim 40, datatype 70, pixdim 76, vox_offset 108, sform_code 254, srow_x 280.
HEADER_LIES = {
    "zero spacing": (_at(80, "<f", 0.0), "spacing"),
    "negative spacing": (_at(84, "<f", -1.0), "spacing"),
    "NaN spacing": (_at(88, "<f", float("nan")), "spacing"),
    "infinite spacing": (_at(80, "<f", float("inf")), "spacing"),
    "54 TB": (_at(42, "<3h", 30000, 30000, 30000), "cannot hold"),
    "twice the slices": (_at(46, "<h", 24), "holds"),
    "negative dimension": (_at(42, "<h", -8), "dimensions"),
    "no dimension": (_at(40, "<h", 0), "dimensions"),
    "five dimensions": (_at(40, "<6h", 5, 8, 10, 4, 1, 3), "5 dimensions"),
    "colours": (_at(70, "<h", 128), "voxels of type"),
    "complex numbers": (_at(70, "<h", 32), "voxels of type"),
    "unknown type": (_at(70, "<h", 9999), "voxel type"),
    "voxels nowhere": (_at(108, "<f", float("nan")), "places the voxels"),
    "NaN axes": (_at(280, "<f", float("nan")), "axes"),
    "sheared axes": (_at(284, "<f", 0.5), "orthonormal"),
}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan_0000.nii.gz"
    write_image(path, ARRAY)
    return path


def _rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<2h", raw, 252, 0, 1)  # sform only, so that the axes are where the test writes them
    change(raw)
    path.write_bytes(gzip.compress(bytes(raw)))


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_header_lies(scan: Path, lie: str) -> None:
    change, reason = HEADER_LIES[lie]
    _rewrite(scan, change)
    with pytest.raises(DataError, match=reason) as caught:
        check_image_file(scan, voxels=True)
    assert str(scan) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 20, 400, -100, -4])
def test_truncated(scan: Path, keep: int) -> None:
    scan.write_bytes(scan.read_bytes()[:keep])
    with pytest.raises(DataError):
        check_image_file(scan, voxels=True)


def test_flipped_byte(scan: Path) -> None:
    write_image(scan, np.random.default_rng(1).normal(size=(60, 60, 40)).astype(np.float32))
    raw = bytearray(scan.read_bytes())
    raw[-6] ^= 0xFF  # in the checksum; ITK reads the file without a word
    scan.write_bytes(bytes(raw))
    read_image_header(scan)
    with pytest.raises(DataError, match="damaged"):
        check_image_file(scan, voxels=True)


@pytest.mark.parametrize("content", [b"hello " * 200, gzip.compress(b"hello " * 200)], ids=["plain", "gzip"])
def test_not_an_image(scan: Path, content: bytes) -> None:
    scan.write_bytes(content)
    with pytest.raises(DataError):
        check_image_file(scan)


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".gipl"])
def test_uncompressed_formats(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(path), False)
    assert check_image_file(path, voxels=True).size == (8, 10, 12)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=str(path)):
        check_image_file(path, voxels=True)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_one_bad_voxel(scan: Path, value: float, reason: str) -> None:
    array = ARRAY.copy()
    array[3, 4, 5] = value
    write_image(scan, array)
    with pytest.raises(DataError, match=f"1 of {array.size} voxels.*{reason}"):
        check_image_file(scan, voxels=True)


@pytest.mark.parametrize("value", [0, 7])
def test_constant(scan: Path, value: float) -> None:
    write_image(scan, np.full_like(ARRAY, value))
    with pytest.raises(DataError, match=f"all voxels are {value}"):
        check_image_file(scan, voxels=True)


def test_missing_and_dangling(tmp_path: Path) -> None:
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "nowhere")
    for name in ("none.nii.gz", "link.nii.gz"):
        with pytest.raises(DataError, match="no such file"):
            check_image_file(tmp_path / name)


def test_bomb_costs_no_memory(tmp_path: Path) -> None:
    """1600 x 1600 x 1600 bytes of zeros in 4 MB: refused from the header, nothing is decompressed."""
    path = tmp_path / "bomb.nii.gz"
    write_image(path, np.ones((2, 2, 2), np.uint8))
    header = bytearray(gzip.decompress(path.read_bytes())[:352])
    struct.pack_into("<3h", header, 42, 1600, 1600, 1600)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(bytes(header))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    path.write_bytes(path.read_bytes() + bytes(4_000_000))  # as large as the real one
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="above the limit"):
        check_image_file(path, voxels=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_limit_is_configurable(scan: Path) -> None:
    assert check_image_file(scan, max_voxels=960).size == (8, 10, 12)
    with pytest.raises(DataError, match="limit of 959"):
        check_image_file(scan, max_voxels=959)


def test_trailing_singleton_and_2d_pass(scan: Path, tmp_path: Path) -> None:
    _rewrite(scan, _at(40, "<5h", 4, 8, 10, 12, 1))
    assert check_image_file(scan, voxels=True).size == (8, 10, 12)
    write_image(tmp_path / "flat.png", (ARRAY[0] * 20 + 100).astype(np.uint8), (1, 1))
    assert check_image_file(tmp_path / "flat.png", voxels=True).size == (8, 10)


def test_same_grid(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("a", "b", "c", "d")}
    write_image(paths["a"], ARRAY)
    write_image(paths["b"], ARRAY + 1)
    write_image(paths["c"], ARRAY, (1, 1, 1.1))
    write_image(paths["d"], ARRAY[1:])
    headers = {name: read_image_header(path) for name, path in paths.items()}
    assert headers["a"].same_grid(headers["b"])
    assert not headers["a"].same_grid(headers["c"])
    assert not headers["a"].same_grid(headers["d"])
