"""Writes an image as DICOM, one file a slice or one enhanced file, with exactly the image's geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid


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


def write_enhanced(image: sitk.Image, path: Path) -> None:
    """Write int16 slices as one enhanced MR file, whose geometry stands in its functional groups."""
    array = sitk.GetArrayFromImage(image).astype(np.int16)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = EnhancedMRImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.SeriesDescription, data.Modality, data.PatientID = "enhanced", "MR", ""
    data.Manufacturer, data.SeriesNumber, data.InstanceNumber = "SIEMENS", 1, 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    data.NumberOfFrames, data.Rows, data.Columns = array.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [*map(float, direction[:, 0]), *map(float, direction[:, 1])]
    measures.PixelSpacing = [image.GetSpacing()[1], image.GetSpacing()[0]]
    measures.SliceThickness = measures.SpacingBetweenSlices = image.GetSpacing()[2]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence([_frame(image, index) for index in range(len(array))])
    data.PixelData = array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def _frame(image: sitk.Image, index: int) -> Dataset:
    frame, position, content = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [float(x) for x in image.TransformIndexToPhysicalPoint((0, 0, index))]
    content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = "1", index + 1, 1
    content.DimensionIndexValues = [1, index + 1]
    frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([position]), Sequence([content])
    return frame
