"""Where a trainer's preprocessed unlabelled scans lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctnet_nnunet.unlabeled.copies import refuse_copies
from ctnet_nnunet.unlabeled.dataset import check_unlabeled_folder, unlabeled_folder


def preprocess_command(trainer: nnUNetTrainer) -> str:
    """What preprocesses imagesUn for the trainer's configuration."""
    number, plans = int(trainer.plans_manager.dataset_name[7:10]), trainer.plans_manager.plans_name
    return f"ctnet preprocess-unlabeled -d {number} -c {trainer.configuration_name} -p {plans}"


def checked_unlabeled_folder(trainer: nnUNetTrainer) -> Path:
    """The folder of the trainer's configuration, which may not exist.

    Raises:
        DataError: Its scans were made by other plans, or imagesUn holds scans and none is preprocessed.
    """
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    raw = _raw_folder(trainer)
    folder = unlabeled_folder(Path(trainer.preprocessed_dataset_folder).parent, configuration.data_identifier)
    check_unlabeled_folder(folder, plans.plans, configuration.configuration, preprocess_command(trainer), raw)
    return folder


def refuse_validation_cases(trainer: nnUNetTrainer, folder: Path, scans: Iterable[str], cases: Collection[str]) -> None:
    """Raise DataError if a preprocessed scan is the same file as a validation case, where raw data are at hand."""
    if (raw := _raw_folder(trainer)) is not None:
        refuse_copies(folder, scans, raw, trainer.dataset_json, cases)


def _raw_folder(trainer: nnUNetTrainer) -> Path | None:
    return Path(str(nnUNet_raw)) / trainer.plans_manager.dataset_name if nnUNet_raw.is_set() else None
