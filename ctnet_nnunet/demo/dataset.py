"""The shipped scans as an nnU-Net raw dataset: few labelled, many without labels, some new."""

from __future__ import annotations

import json
import os
import shutil
from importlib import resources
from pathlib import Path

from ctnet_nnunet.demo.select_cases import ENDING
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.files import sha256

DATASET_ID = 501
DATASET_NAME = "Dataset501_Hippocampus"
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}

NEW_SCANS = Path("new_scans")
"""The held-out scans, as a user's own new scans would lie; relative to the demo's folder."""

NEW_LABELS = Path("new_scans_labels")
"""Their manual labels, read by the evaluation alone."""


def shipped_data() -> Path:
    """The folder with the packaged scans."""
    return Path(str(resources.files("ctnet_nnunet.demo").joinpath("data")))


def read_roles(data: Path) -> dict[str, str]:
    """Case → role, after a check that every file is there and has its checksum.

    Raises:
        DataError: naming the first file that is missing or changed.
    """
    roles = {}
    for entry in json.loads((data / "cases.json").read_text())["cases"]:
        name = entry["case"]
        for folder in ("images", "labels"):
            path = data / folder / f"{name}{ENDING}"
            if not path.is_file() or sha256(path) != entry[f"{folder}_sha256"]:
                raise DataError(f"{path}: missing or not the shipped file; install ctnet_nnunet again")
        roles[name] = entry["role"]
    return roles


def build_raw_dataset(root: Path) -> None:
    """Write ``nnUNet_raw/Dataset501_Hippocampus``, ``new_scans`` and ``new_scans_labels`` below ``root``.

    The dataset folder appears under its name only when it is whole.
    """
    data = shipped_data()
    roles = read_roles(data)
    raw = root / "nnUNet_raw"
    target, building = raw / DATASET_NAME, raw / f".{DATASET_NAME}.part"
    for old in (target, building, root / NEW_SCANS, root / NEW_LABELS):
        shutil.rmtree(old, ignore_errors=True)
    images = {"labelled": building / "imagesTr", "unlabelled": building / "imagesUn", "held_out": root / NEW_SCANS}
    labels = {"labelled": building / "labelsTr", "held_out": root / NEW_LABELS}
    for case, role in roles.items():
        _copy(data / "images" / f"{case}{ENDING}", images[role] / f"{case}_0000{ENDING}")
        if role in labels:
            _copy(data / "labels" / f"{case}{ENDING}", labels[role] / f"{case}{ENDING}")
    _write_dataset_json(building / "dataset.json", sum(role == "labelled" for role in roles.values()))
    os.replace(building, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_dataset_json(path: Path, cases: int) -> None:
    content = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ENDING,
        "name": "Hippocampus",
        "reference": "Medical Segmentation Decathlon Task04, Simpson et al., arXiv:1902.09063",
        "licence": "CC BY-SA 4.0",
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
