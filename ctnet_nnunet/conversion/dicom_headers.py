"""The headers of DICOM files, as far as geometry and grouping need them; no pixel is read."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from ctnet_nnunet.errors import DataError

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "ImageType", "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription",
    "ProtocolName", "PatientID", "InstitutionName", "Modality", "Rows", "Columns", "SamplesPerPixel",
    "BitsAllocated", "NumberOfFrames", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope",
    "RescaleIntercept", "EchoTime", "TriggerTime", "TemporalPositionIdentifier", "DiffusionBValue", "AcquisitionNumber",
    "InstanceNumber",
)  # fmt: skip
_UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
# Names of what may distinguish slices at one position, the likeliest first.
REPEATS = {
    "EchoTime": "echoes",
    "DiffusionBValue": "b-values",
    "TemporalPositionIdentifier": "time points",
    "TriggerTime": "heart phases",
    "AcquisitionNumber": "acquisitions",
    "ImageType": "kinds of image (magnitude, phase, …)",
}


@dataclass(frozen=True)
class Header:
    """One file's header; ``values`` holds what it has of the tags above, by keyword."""

    path: Path
    values: dict[str, Any]

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """A tag's finite numbers; None where it is absent or has others."""
        value = self.values.get(keyword)
        if value is None or value == "":
            return None
        try:
            found = tuple(float(v) for v in (value if count > 1 else [value]))
        except (TypeError, ValueError):
            return None
        return found if len(found) == count and all(map(math.isfinite, found)) else None

    def text(self, keyword: str) -> str:
        value = self.values.get(keyword)
        return "" if value is None else str(value).strip()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return int(self.values["Columns"]), int(self.values["Rows"])

    @property
    def description(self) -> str:
        return self.text("SeriesDescription") or self.text("ProtocolName")

    @property
    def needs_dcm2niix(self) -> str:
        """Why a slice-by-slice reader cannot read it; empty where it can."""
        if "MOSAIC" in self.text("ImageType").upper():
            return "a Siemens mosaic"
        # A slice without a position is no such file: dcm2niix would place it anywhere, and say nothing.
        if (self.numbers("NumberOfFrames", 1) or (1.0,))[0] > 1 or "Enhanced" in UID(self.text("SOPClassUID")).name:
            return "a multi-frame (enhanced) file"
        return ""


def read_header(path: Path) -> Header | None:
    """Read one file; None for what is no DICOM image (a DICOMDIR, a report, another kind of file).

    Raises:
        DataError: a DICOM image that is damaged, cut off or in colour.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is not to the standard: judged below, where it matters
            with path.open("rb") as stream:
                dataset = dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
                pixels_begin = stream.tell()
            values = {keyword: dataset.get(keyword) for keyword in _TAGS if keyword in dataset}
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
        kind = UID(str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))).name
    except InvalidDicomError:
        return None
    except Exception as error:  # pydicom raises whatever a broken value leads to
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error}); copy it again") from error
    header = Header(path, values)
    if header.numbers("Rows", 1) is None or header.numbers("Columns", 1) is None:
        if "Image Storage" in kind or not kind:
            raise DataError(f"{path}: declares an image without a size, it is damaged or cut off; copy it again")
        return None
    if header.numbers("SamplesPerPixel", 1) not in (None, (1.0,)):
        raise DataError(f"{path}: is a colour image; take it out of the folder")
    if syntax in _UNCOMPRESSED:
        _check_length(header, pixels_begin)
    return header


def _check_length(header: Header, pixels_begin: int) -> None:
    """Uncompressed pixels need their bytes; readers fill the rest of a cut-off file with anything."""
    columns, rows = header.size
    frames = int((header.numbers("NumberOfFrames", 1) or (1.0,))[0])
    needed = columns * rows * frames * int((header.numbers("BitsAllocated", 1) or (8.0,))[0]) // 8
    if header.path.stat().st_size - pixels_begin < needed:
        raise DataError(f"{header.path}: is cut off, its {columns}×{rows} pixels need {needed} bytes; copy it again")
