"""One unlabelled scan from imagesUn to the preprocessed folder, by nnU-Net's own preprocessor."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.image_check import MAX_VOXELS, check_integrity, check_voxels, read_image_header
from ctnet_nnunet.unlabeled.commit import case_lock, commit, partial_folder
from ctnet_nnunet.unlabeled.records import describe_input, is_current, remove_case, write_record
from ctnet_nnunet.unlabeled.target import Target


@dataclass(frozen=True)
class Job:
    """One case to preprocess; ``files`` holds its channels in order.

    ``one_slice``: planes.json says that it is a single slice, in whatever dataset.
    """

    case: str
    files: tuple[Path, ...]
    one_slice: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a case; ``reason`` says why it failed."""

    case: str
    status: Literal["done", "unchanged", "failed"]
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class CaseWorker:
    """Callable that preprocesses one :class:`Job`; picklable, so that worker processes can run it."""

    target: Target
    force: bool = False
    max_voxels: int = MAX_VOXELS

    def __call__(self, job: Job) -> Outcome:
        """Preprocess the case unless it is current; a case that fails leaves no output behind."""
        start = time.monotonic()
        try:
            with case_lock(self.target.folder, job.case) as locked:
                outcome = self._run_locked(job, locked)
        except OSError as error:
            return Outcome(job.case, "failed", describe_error(error))
        return dataclasses.replace(outcome, seconds=time.monotonic() - start)

    def _run_locked(self, job: Job, locked: bool) -> Outcome:
        folder, printed = self.target.folder, io.StringIO()
        try:
            if not self.force and is_current(folder, job.case, self.target.plan_hash, list(job.files)):
                return Outcome(job.case, "unchanged")
            # nnU-Net prints what it does and, before some bare exceptions, what is wrong.
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                self._preprocess(job, locked)
        except Exception as error:
            remove_case(folder, job.case)
            return Outcome(job.case, "failed", describe_error(error, printed.getvalue()))
        return Outcome(job.case, "done")

    def _preprocess(self, job: Job, locked: bool) -> None:
        check_headers(job.files, self.target, self.max_voxels, job.one_slice)
        inputs = [describe_input(file) for file in job.files]
        with partial_folder(self.target.folder, job.case, locked) as partial:
            preprocess_files(job, self.target, partial, self.max_voxels)
            write_record(partial, job.case, self.target.plan_hash, inputs)
            commit(partial, self.target.folder, job.case)


def check_headers(files: tuple[Path, ...], target: Target, max_voxels: int, one_slice: bool = False) -> None:
    """Check every channel's header, then its bytes, against each other and the plans.

    ``one_slice``: a single slice is what is wanted.

    Raises:
        DataError: a broken file, channels on different grids, a 2D scan in a 3D dataset or the reverse.
    """
    headers = [read_image_header(file, max_voxels) for file in files]
    for file, header in zip(files[1:], headers[1:], strict=True):
        if not headers[0].same_grid(header):
            raise DataError(f"{file.name} lies on another grid than {files[0].name}; resample one onto the other")
    flat_plan = int(target.plans["original_median_shape_after_transp"][0]) == 1
    flat_scan = len(headers[0].size) == 2 or 1 in headers[0].size
    if flat_plan != flat_scan and not one_slice:
        shape = " x ".join(map(str, headers[0].size))
        raise DataError(f"is {shape} voxels, the dataset's scans are {'2D' if flat_plan else '3D'}; remove it")
    for file in files:
        check_integrity(file)


def preprocess_files(job: Job, target: Target, folder: Path, max_voxels: int) -> None:
    """Read, check, preprocess and save a case as stock preprocessing saves a labelled one.

    Written are ``CASE.b2nd`` (C, X, Y, Z), ``CASE_seg.b2nd`` (1, X, Y, Z; 0 inside the nonzero region, -1 outside)
    and ``CASE.pkl``, whose ``class_locations`` are empty for every class, so that nnU-Net's loader draws at random.
    """
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(target.plans)
    configuration = plans.get_configuration(target.configuration)
    data, properties = plans.image_reader_writer_class().read_images([str(file) for file in job.files])
    if data.shape[0] != len(configuration.normalization_schemes):
        raise DataError(f"has {data.shape[0]} channels, the plans want {len(configuration.normalization_schemes)}")
    for channel in range(data.shape[0]):
        check_voxels(data[channel], f"channel {channel:04d}")
    _check_resampled_size(data.shape[1:], properties["spacing"], target, configuration.spacing, max_voxels)
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, seg, properties = preprocessor.run_case_npy(data, None, properties, plans, configuration, target.dataset_json)
    properties["class_locations"] = empty_class_locations(plans.get_label_manager(target.dataset_json))
    data, seg = data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False)
    storage = _storage(data, "", configuration.patch_size) | _storage(seg, "_seg", configuration.patch_size)
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / job.case), **storage)


def empty_class_locations(label_manager: Any) -> dict[int | tuple[int, ...], list[Any]]:
    """What stock preprocessing records for a case without foreground: every class or region, nowhere."""
    wanted = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    keys = [tuple(map(int, c)) if isinstance(c, (tuple, list)) else int(c) for c in wanted]
    if label_manager.has_ignore_label:
        # The key that nnU-Net's loader looks up first when a dataset has an ignore label.
        keys.append((-1, *map(int, label_manager.all_labels)))
    return {key: [] for key in keys}


def _check_resampled_size(
    shape: tuple[int, ...], spacing: list[float], target: Target, target_spacing: list[float], max_voxels: int
) -> None:
    """A plausible header with an absurd spacing would resample to more memory than any machine has."""
    order = target.plans["transpose_forward"]
    source = [float(spacing[axis]) for axis in order][-len(target_spacing) :]
    factor = math.prod(s / t for s, t in zip(source, target_spacing, strict=True))
    if math.prod(shape) * factor > max_voxels:
        raise DataError(
            f"spacing {[round(float(s), 3) for s in spacing]} mm would resample to "
            f"{math.prod(shape) * factor:.2g} voxels, above the limit of {max_voxels}; correct the spacing"
        )


def _storage(array: Any, name: str, patch_size: list[int]) -> dict[str, Any]:
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    blocks, chunks = comp_blosc2_params(array.shape, tuple(patch_size), array.itemsize)
    return {f"blocks{name}": blocks, f"chunks{name}": chunks}


def describe_error(error: Exception, printed: str = "") -> str:
    """One line for a failed case; nnU-Net's bare exceptions are explained by what it printed before."""
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory; use fewer processes (-np 1) or crop the scan"
    text = " ".join(str(error).split()) or " ".join(printed.split())[-300:]
    return f"{type(error).__name__}: {text}"
