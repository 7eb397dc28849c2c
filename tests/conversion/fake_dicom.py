"""Writes an image as a DICOM series, one file a slice, with exactly the image's geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(image: sitk.Image, folder: Path, seed: int = 0, **tags: Any) -> list[Path]:
    """Write int16 slices along the image's last axis, under names in random order; ``tags`` go into every file.

    A tag may be a list with one value a slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    array = sitk.GetArrayFromImage(image).astype(np.int16)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    series = tags.pop("SeriesInstanceUID", None) or generate_uid()
    names = np.random.default_rng(seed).permutation(len(array))
    files = []
    for index, plane in enumerate(array):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{seed:03d}_{names[index]:04d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.SeriesDescription, data.Modality = series, "t1 mprage", "MR"
        data.PatientID, data.InstanceNumber = "", int(names[index])
        data.Rows, data.Columns = plane.shape
        data.ImagePositionPatient = [float(x) for x in image.TransformIndexToPhysicalPoint((0, 0, index))]
        data.ImageOrientationPatient = [*map(float, direction[:, 0]), *map(float, direction[:, 1])]
        data.PixelSpacing = [image.GetSpacing()[1], image.GetSpacing()[0]]
        data.SliceThickness = image.GetSpacing()[2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.PixelData = plane.tobytes()
        for keyword, value in tags.items():
            if value is None:
                delattr(data, keyword)
            else:
                setattr(data, keyword, value[index] if isinstance(value, list) else value)
        data.save_as(path, enforce_file_format=True)
        files.append(path)
    return files
