"""The dataset that a command names: its folder, and what planning needs of it."""

from __future__ import annotations

import re
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from ctnet_nnunet.errors import DataError, PlanError, SetupError


def dataset_folder_name(dataset: str | int) -> str:
    """``501``, ``"501"`` or ``"Dataset501_Name"`` → ``"Dataset501_Name"``.

    Raises:
        SetupError: If nnU-Net's folders are not set.
        DataError: If there is no such dataset.
    """
    for folder in (nnUNet_raw, nnUNet_preprocessed):
        if not folder.is_set():
            raise SetupError(f"{folder.env_var_name} is not set; export it (`ctnet doctor` shows all three folders)")
    try:
        found: str = maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        if "More than one" in str(error):
            raise DataError(
                f"dataset {dataset}: several folders have this id; give the whole name, or rename one"
            ) from None
        raise DataError(f"dataset {dataset}: not found in nnUNet_raw ({nnUNet_raw}); check the id") from None
    known = any((Path(str(folder)) / found).is_dir() for folder in (nnUNet_raw, nnUNet_preprocessed))
    if not known or not re.fullmatch(r"Dataset[0-9]{3}_.+", found):
        raise DataError(f"dataset {dataset}: not found in nnUNet_raw ({nnUNet_raw}); check the id")
    return found


def require_fingerprint(dataset_name: str) -> None:
    """Raise PlanError without nnU-Net's fingerprint."""
    if not (Path(str(nnUNet_preprocessed)) / dataset_name / "dataset_fingerprint.json").is_file():
        number = int(dataset_name[len("Dataset") :].split("_")[0])
        raise PlanError(f"{dataset_name}: no fingerprint yet; run nnUNetv2_extract_fingerprint -d {number} first")


def require_raw_dataset(dataset_name: str) -> None:
    """Raise DataError without the raw dataset: dataset.json and images."""
    remedy = "nnU-Net's planner reads it, so restore the raw dataset"
    folder = Path(str(nnUNet_raw)) / dataset_name
    if not (folder / "dataset.json").is_file():
        raise DataError(f"{folder / 'dataset.json'}: missing; {remedy}")
    try:
        # A "dataset" table lists images that lie elsewhere.
        listed = "dataset" in load_json(str(folder / "dataset.json"))
    except ValueError as error:
        raise DataError(f"{folder / 'dataset.json'}: no valid JSON ({error}); correct it") from None
    if not listed and not any(folder.glob("imagesTr/*")):
        raise DataError(f"{folder / 'imagesTr'}: missing or empty; {remedy}")
