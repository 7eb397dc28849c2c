"""The pool that pretraining draws from: unlabelled scans and images of training cases, never a label."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.unlabeled.cases import has_scans
from ctnet_nnunet.unlabeled.records import complete_cases, preprocessing_hash, read_record
from ctnet_nnunet.unlabeled.target import unlabeled_folder

__all__ = ["NoLocations", "PooledDataset", "check_unlabeled_folder", "unlabeled_folder", "unlabeled_identifiers"]


def unlabeled_identifiers(folder: Path) -> list[str]:
    """The complete preprocessed scans of a folder, sorted; none when it does not exist."""
    return complete_cases(Path(folder))


def check_unlabeled_folder(
    folder: Path,
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    command: str,
    raw_dataset_folder: Path | None = None,
) -> None:
    """Check that the folder was made by the current plans and that preprocessing was not forgotten.

    Args:
        plans, configuration: the whole plans and the resolved configuration block.
        command: the remedy to name, for example ``ctnet preprocess-unlabeled -d 501 -c 3d_fullres``.
        raw_dataset_folder: where imagesUn may lie; None when raw data are not at hand.

    Raises:
        DataError: cases of other plans; scans in imagesUn of which none is preprocessed.
    """
    cases = unlabeled_identifiers(folder)
    wanted = preprocessing_hash(plans, configuration)
    foreign = [case for case in cases if (read_record(folder, case) or {}).get("plan") != wanted]
    if foreign:
        raise DataError(
            f"{len(foreign)} of {len(cases)} scans in {folder} were preprocessed with other plans "
            f"(first: {foreign[0]}); run {command}"
        )
    if not cases and raw_dataset_folder is not None and has_scans(raw_dataset_folder / "imagesUn"):
        raise DataError(f"the scans in {raw_dataset_folder / 'imagesUn'} are not preprocessed; run {command}")


class NoLocations(dict[Any, list[Any]]):
    """Class locations of a case without labels: empty for whatever class nnU-Net's loader looks up."""

    def __missing__(self, key: Any) -> list[Any]:
        return []


class PooledDataset(nnUNetBaseDataset):  # type: ignore[misc]  # nnunetv2 is untyped
    """Images of labelled cases and unlabelled scans behind nnU-Net's dataset interface.

    ``load_case`` returns ``(data, seg, None, properties)``: ``data`` (C, X, Y, Z) stays on disk and is read by slices,
    ``seg`` (1, X, Y, Z) is all zeros and takes no memory, so that -1 in a batch means padding and nothing else. No
    segmentation and no pickled properties are ever opened.

    Args:
        labelled_folder: the preprocessed folder of the configuration.
        labelled_keys: the cases whose images may be used; a trainer passes its fold's training cases.
        unlabeled: the folder of :func:`unlabeled_folder`; may not exist. None: no unlabelled scans.

    Raises:
        DataError: nothing to draw from; a missing image; a scan that is also a labelled case, of whatever fold.
    """

    def __init__(self, labelled_folder: Path, labelled_keys: Sequence[str], unlabeled: Path | None) -> None:
        labelled_folder = Path(labelled_folder)
        scans = [] if unlabeled is None else unlabeled_identifiers(Path(unlabeled))
        _check_pool(labelled_folder, list(labelled_keys), unlabeled, scans)
        self.folders: dict[str, Path] = dict.fromkeys(labelled_keys, labelled_folder)
        if unlabeled is not None:
            self.folders |= dict.fromkeys(scans, Path(unlabeled))
        self.labelled_identifiers, self.unlabeled_identifiers = sorted(set(labelled_keys)), scans
        super().__init__(str(labelled_folder), sorted(self.folders))
        blosc2.set_nthreads(1)

    def load_case(self, identifier: str) -> tuple[Any, np.ndarray, None, dict[str, Any]]:
        """Open one case; see the class for what comes back."""
        # Memory-mapped files cannot be replaced on Windows while they are open.
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
        path = self.folders[identifier] / f"{identifier}.b2nd"
        data = blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapped)
        seg = np.broadcast_to(np.int16(0), (1, *data.shape[1:]))
        return data, seg, None, {"class_locations": NoLocations()}

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """The complete unlabelled scans of a folder."""
        return unlabeled_identifiers(Path(folder))

    @staticmethod
    def save_case(
        data: np.ndarray, seg: np.ndarray, properties: dict[str, Any], output_filename_truncated: str
    ) -> None:
        """Refused: a pool is read only."""
        raise TypeError("a PooledDataset is read only")


def _check_pool(labelled_folder: Path, labelled_keys: list[str], unlabeled: Path | None, scans: list[str]) -> None:
    if not labelled_keys and not scans:
        raise DataError(
            f"nothing to pretrain on: no training case and no scan in {unlabeled}; "
            "put scans in imagesUn and run ctnet preprocess-unlabeled, or train on a fold with training cases"
        )
    missing = [key for key in labelled_keys if not (labelled_folder / f"{key}.b2nd").is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} training cases are not preprocessed in {labelled_folder} (first: {missing[0]}); "
            "run nnUNetv2_preprocess for this configuration"
        )
    # Compared with all folds: a scan that was labelled since may be a validation case of this one.
    known = set(labelled_keys)
    if labelled_folder.is_dir():
        known |= set(nnUNetDatasetBlosc2.get_identifiers(str(labelled_folder)))
    shared = sorted(known & set(scans))
    if shared:
        raise DataError(
            f"{', '.join(shared[:5])} in {unlabeled} {'is' if len(shared) == 1 else 'are'} also labelled; remove the "
            "scans from imagesUn and run ctnet preprocess-unlabeled again"
        )
