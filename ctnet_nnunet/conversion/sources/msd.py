"""A task of the Medical Segmentation Decathlon: its dataset.json lists everything, 4D files hold the channels."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from ctnet_nnunet.conversion.cases import TEST, UNLABELLED, Case, Image, Listing, case_name
from ctnet_nnunet.conversion.labels import read_label_map
from ctnet_nnunet.conversion.read import stem, volumes_in
from ctnet_nnunet.errors import DataError


def list_msd(root: Path, test_as_unlabelled: bool) -> Listing:
    """List a task's folder.

    Args:
        test_as_unlabelled: put imagesTs into imagesUn instead of imagesTs.

    Raises:
        DataError: dataset.json is missing or lacks what a task has.
    """
    file = root / "dataset.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        channels = [str(content["modality"][key]) for key in sorted(content["modality"], key=int)]
        training = [(str(entry["image"]), str(entry["label"])) for entry in content["training"]]
        test = [str(entry["image"] if isinstance(entry, dict) else entry) for entry in content.get("test", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: is no dataset.json of a Decathlon task ({type(error).__name__}: {error})") from None
    listing = Listing(root, channels, label_map=read_label_map(str(file)))
    for image, label in training:
        _add(listing, image, label, "")
    for image in test:
        _add(listing, image, None, UNLABELLED if test_as_unlabelled else TEST)
    for folder, listed in (("imagesTr", {image for image, _ in training}), ("labelsTr", {lab for _, lab in training})):
        _name_unlisted(listing, folder, listed)
    return listing


def _add(listing: Listing, image: str, label: str | None, part: str) -> None:
    try:
        path = _inside(listing.root, image)
        mask = Image(_inside(listing.root, label)) if label else None
        volumes = volumes_in(path)
        if volumes != len(listing.channels):
            raise DataError(
                f"{image}: holds {volumes} volumes for the {len(listing.channels)} channels of dataset.json"
            )
        if mask is not None and not mask.path.is_file():
            raise DataError(f"{label}: no such file; complete the task")
    except DataError as error:
        listing.refused[image] = str(error).replace(f"{listing.root}/", "")
        return
    images = tuple(Image(path, index) for index in range(volumes))
    listing.cases.append(Case(case_name(stem(path)), images, mask, part=part))


def _inside(root: Path, name: str) -> Path:
    """A path of dataset.json, which must not lead out of the task's folder."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise DataError(f"{name}: leads out of the task's folder; correct dataset.json")
    return root.joinpath(*parts)


def _name_unlisted(listing: Listing, folder: str, listed: set[str]) -> None:
    """Files that dataset.json leaves out; ``._x`` are leftovers of a file system."""
    known = {PurePosixPath(name).name for name in listed}
    paths: list[Any] = sorted((listing.root / folder).glob("*.nii*"))
    for path in paths:
        if path.name not in known and not path.name.startswith((".", "_")):
            listing.refused[f"{folder}/{path.name}"] = "is not in dataset.json; add it there or remove it"
