"""Series that make no volume, or a wrong one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import JPEG2000Lossless

from tests.bad_files.base import Bad, Good, predict, series_image
from tests.conversion.fake_dicom import write_series

Files = list[Path]


def series(name: str, what: str, change: Callable[[Files], object] | None = None, **tags: Any) -> Bad:
    """A series of six slices with other tags, or with its files changed (in the order of slices)."""

    def make(folder: Path, good: Good) -> list[str]:
        files = write_series(series_image(), folder / "series", SeriesInstanceUID="1.2.3", **tags)
        if change:
            change(files)
        return predict(folder, folder / "series", good.model)

    return Bad(f"{name}/*.dcm", what, make)


def edited(edit: Callable[[pydicom.Dataset], object], which: slice = slice(None)) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        for file in files[which]:
            data = pydicom.dcmread(file)
            edit(data)
            data.save_as(file)

    return change


def _compress(data: pydicom.Dataset, pixels: bytes = b"\xff\x4f\xff\x51rubbish") -> None:
    from pydicom.encaps import encapsulate

    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = encapsulate([pixels])
    data["PixelData"].VR = "OB"


def _huge_compressed(data: pydicom.Dataset) -> None:
    _compress(data)
    data.Rows = data.Columns = 65535


def _cut(files: Files) -> None:
    files[3].write_bytes(files[3].read_bytes()[:-60])


def _cut_header(files: Files) -> None:
    files[3].write_bytes(files[3].read_bytes()[:300])


def _overlong_element(files: Files) -> None:
    """A text of 4 GB, by the length that stands before it."""
    raw = bytearray(files[2].read_bytes())
    place = raw.index(b"t1 mprage") - 2
    struct.pack_into("<H", raw, place, 0xFFFE)
    files[2].write_bytes(raw)


def _rubbish(files: Files) -> None:
    for file in files:
        file.write_bytes(bytes(128) + b"DICM" + b"\x99" * 400)


def _tilt(files: Files) -> None:
    for index, file in enumerate(files):
        data = pydicom.dcmread(file)
        x, y, z = (float(value) for value in data.ImagePositionPatient)
        data.ImagePositionPatient = [x, y + 0.6 * index, z]
        data.save_as(file)


def _other_size(data: pydicom.Dataset) -> None:
    data.Rows, data.Columns, data.PixelData = 4, 4, bytes(32)


DICOM = [
    series("cut", "one file without its last bytes", _cut),
    series("cut_header", "one file that ends in its header", _cut_header),
    series("rubbish", "the magic of DICOM and rubbish behind it", _rubbish),
    series("overlong_element", "a text longer than its file", _overlong_element),
    series("no_position", "no ImagePositionPatient", ImagePositionPatient=None),
    series("no_orientation", "no ImageOrientationPatient", ImageOrientationPatient=None),
    series("no_pixel_spacing", "no PixelSpacing", PixelSpacing=None),
    series("zero_pixel_spacing", "a PixelSpacing of 0", PixelSpacing=[[0.0, 0.0]] * 6),
    series("zero_orientation", "an orientation of zeros", ImageOrientationPatient=[[0.0] * 6] * 6),
    series("skewed", "rows and columns not at right angles",
           ImageOrientationPatient=[[1.0, 0.0, 0.0, 0.7, 0.7, 0.0]] * 6),
    series("one_position", "all slices at one position", ImagePositionPatient=[[0.0, 0.0, 0.0]] * 6),
    series("tilt", "a tilted gantry", _tilt),
    series("gap", "a slice missing", lambda files: files[2].unlink()),
    series("two_orientations", "a slice of another orientation",
           edited(lambda d: setattr(d, "ImageOrientationPatient", [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]), slice(1))),
    series("two_sizes", "a slice of another size", edited(_other_size, slice(1))),
    series("two_series", "two series in one folder",
           edited(lambda d: setattr(d, "SeriesInstanceUID", "1.2.4"), slice(2))),
    series("rows_too_many", "65535 rows, and pixels for 9", edited(lambda d: setattr(d, "Rows", 65535))),
    series("no_rows", "no Rows", edited(lambda d: delattr(d, "Rows"))),
    series("colours", "three samples a pixel", SamplesPerPixel=3, PhotometricInterpretation="RGB"),
    series("compressed_rubbish", "JPEG 2000 that is rubbish", edited(_compress)),
    series("compressed_huge", "65535 × 65535 compressed pixels that are rubbish", edited(_huge_compressed)),
    series("no_pixels", "no PixelData", edited(lambda d: delattr(d, "PixelData"))),
]  # fmt: skip
