"""Which scans, with which plans, into which folder: one command's target, found and checked before any work."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import DataError, PlanError, SetupError
from ctnet_nnunet.files import read_planned
from ctnet_nnunet.unlabeled.records import preprocessing_hash

_DATASET_NAME = re.compile(r"Dataset(\d{3,})_[^/\\]+")


@dataclass(frozen=True)
class Target:
    """A dataset, one configuration of its plans, and the folder for the preprocessed unlabelled scans.

    ``plans`` is the whole file; ``plan_hash`` covers the parts of it that decide preprocessing.
    """

    dataset: str
    configuration: str
    raw: Path
    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    plan_hash: str

    @property
    def channels(self) -> int:
        """How many channels the plans expect."""
        return len(self.dataset_json.get("channel_names", self.dataset_json.get("modality", {})))

    @property
    def file_ending(self) -> str:
        return str(self.dataset_json["file_ending"])

    @property
    def images_un(self) -> Path:
        return self.raw / "imagesUn"


def locate(dataset: str | int, configuration: str, plans: str = "nnUNetPlans") -> Target:
    """Find and check everything that a command needs to know.

    Args:
        dataset: 501, "501" or "Dataset501_Name".

    Raises:
        SetupError: an nnU-Net folder is not set or does not exist.
        DataError: unknown or ambiguous dataset.
        PlanError: missing, foreign or broken plans; unknown configuration.
    """
    raw = _dataset_folder(environment_folder("nnUNet_raw"), dataset)
    preprocessed = environment_folder("nnUNet_preprocessed") / raw.name
    content = read_plans(preprocessed, plans, raw.name)
    block = configuration_block(content, configuration, plans)
    return Target(
        dataset=raw.name,
        configuration=configuration,
        raw=raw,
        folder=unlabeled_folder(preprocessed, str(block["data_identifier"])),
        plans=content,
        dataset_json=_read_dataset_json(preprocessed),
        plan_hash=preprocessing_hash(content, block),
    )


def unlabeled_folder(preprocessed_dataset_folder: Path, data_identifier: str) -> Path:
    """Where the preprocessed unlabelled scans of a configuration lie (whether they exist or not)."""
    if not data_identifier or Path(data_identifier).name != data_identifier:
        raise PlanError(f"the plans' data_identifier {data_identifier!r} is not a folder name; plan the dataset again")
    return Path(preprocessed_dataset_folder) / f"{data_identifier}_unlabeled"


def read_plans(preprocessed: Path, plans: str, dataset: str) -> dict[str, Any]:
    """Read ``plans``.json of a preprocessed dataset; refuse another dataset's plans."""
    file = preprocessed / f"{plans}.json"
    if not file.is_file():
        found = sorted(path.stem for path in preprocessed.glob("*Plans*.json"))
        raise PlanError(
            f"no plans {plans!r} in {preprocessed} (found: {', '.join(found) or 'none'}); "
            f"run nnUNetv2_plan_and_preprocess -d {_dataset_number(dataset)} or name the plans with -p"
        )
    content = read_planned(file, PlanError)
    if content.get("dataset_name") != dataset:
        raise PlanError(
            f"{file} was made for {content.get('dataset_name')!r}, not for {dataset}; "
            "bring plans over with nnUNetv2_move_plans_between_datasets"
        )
    return content


def configuration_block(plans: dict[str, Any], configuration: str, name: str) -> dict[str, Any]:
    """The configuration with everything it inherits, as nnU-Net resolves it."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    known = plans.get("configurations")
    if not isinstance(known, dict) or configuration not in known:
        listed = ", ".join(known) if isinstance(known, dict) else "none"
        raise PlanError(f"plans {name!r} have no configuration {configuration!r}; they have: {listed}")
    try:
        block: dict[str, Any] = PlansManager(plans).get_configuration(configuration).configuration
        preprocessing_hash(plans, block)
        block["data_identifier"]
    except KeyError as error:
        raise PlanError(f"configuration {configuration!r} of plans {name!r} lacks {error}; plan again") from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise PlanError(f"configuration {configuration!r} of plans {name!r} cannot be used ({error})") from error
    return block


def environment_folder(variable: str) -> Path:
    """The folder that a variable of nnU-Net's names.

    Raises:
        SetupError: It is not set, or names no folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise SetupError(f"the environment variable {variable} is not set; export it as nnU-Net's installation asks")
    if not Path(value).is_dir():
        raise SetupError(f"{variable}={value} is not a folder; create it or correct the variable")
    return Path(value)


def _dataset_folder(root: Path, dataset: str | int) -> Path:
    text = str(dataset)
    if _DATASET_NAME.fullmatch(text):
        found = [root / text] if (root / text).is_dir() else []
    elif text.isdecimal():
        found = [p for p in sorted(root.glob("Dataset*_*")) if p.is_dir() and _dataset_number(p.name) == int(text)]
    else:
        raise DataError(f"{text!r} is neither a dataset number nor a name like Dataset501_Name")
    if not found:
        raise DataError(f"no dataset {text} in {root}; convert the data into {root}/DatasetXXX_Name first")
    if len(found) > 1:
        raise DataError(f"dataset {text} is ambiguous in {root}: {', '.join(p.name for p in found)}; give the name")
    return found[0]


def _dataset_number(name: str) -> int | None:
    match = _DATASET_NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def _read_dataset_json(preprocessed: Path) -> dict[str, Any]:
    file = preprocessed / "dataset.json"
    if not file.is_file():
        raise DataError(f"{file} is missing; run nnUNetv2_plan_and_preprocess for this dataset first")
    content = read_planned(file, DataError)
    missing = [key for key in ("file_ending", "labels") if key not in content]
    if missing or not content.get("channel_names", content.get("modality")):
        raise DataError(f"{file} lacks {', '.join(missing) or 'channel_names'}; correct it and plan again")
    return content
