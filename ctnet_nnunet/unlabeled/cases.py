"""Which cases lie in imagesUn, and which of its files cannot be part of one."""

from __future__ import annotations

import filecmp
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.sidecar import FILE_NAME as PLANES_FILE
from ctnet_nnunet.unlabeled.target import Target

#: Sidecars that converters leave beside images.
_IGNORED_ENDINGS = (".json", ".txt", ".md", ".csv", ".tsv")


@dataclass
class Listing:
    """Cases with their channel files in order, and what was refused: case or file name to reason."""

    cases: dict[str, list[Path]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def find_cases(target: Target) -> Listing:
    """List imagesUn; no image is opened.

    Raises:
        DataError: the folder is missing or holds no scan at all.
    """
    folder = target.images_un
    remedy = f"put scans there, named CASE_0000{target.file_ending} as in imagesTr and without labels"
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; {remedy}")
    listing, channels = Listing(), defaultdict[str, dict[str, Path]](dict)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or _is_sidecar(path, target.file_ending):
            continue
        if match := _pattern(target.file_ending).fullmatch(path.name):
            channels[match["case"]][match["channel"]] = path
        else:
            listing.refused[path.name] = _why_not_an_image(path, target.file_ending)
    if not channels and not listing.refused:
        raise DataError(f"{folder} is empty; {remedy}")
    training = training_files(target.raw, target.dataset_json)
    wanted = _wanted_channels(target, training)
    for case, files in channels.items():
        reason = _why_not_a_case(case, files, wanted, training)
        if reason:
            listing.refused[case] = reason
        else:
            listing.cases[case] = [files[channel] for channel in wanted]
    return listing


def training_files(raw: Path, dataset_json: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The labelled cases of a raw dataset folder with their image files, as nnU-Net finds them."""
    declared = dataset_json.get("dataset")
    if isinstance(declared, dict):
        return {case: [raw / image for image in entry.get("images", ())] for case, entry in declared.items()}
    found = defaultdict[str, list[Path]](list)
    folder, pattern = raw / "imagesTr", _pattern(str(dataset_json["file_ending"]))
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            found[match["case"]].append(path)
    return dict(found)


def unlabelled_files(target: Target) -> dict[Path, str]:
    """Every image of imagesUn and the case that its name says, whether it can be preprocessed or not; none without."""
    folder, pattern = target.images_un, _pattern(target.file_ending)
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    return {path: match["case"] for path in files if (match := pattern.fullmatch(path.name))}


def _pattern(file_ending: str) -> re.Pattern[str]:
    return re.compile(r"(?P<case>.+)_(?P<channel>\d{4})" + re.escape(file_ending))


def _is_sidecar(path: Path, file_ending: str) -> bool:
    return path.name.lower().endswith(_IGNORED_ENDINGS) and not path.name.endswith(file_ending)


def _why_not_an_image(path: Path, file_ending: str) -> str:
    if path.is_dir():
        return "is a folder; scans must lie directly in imagesUn"
    if not path.name.endswith(file_ending):
        return f"does not end in {file_ending}, the dataset's file ending; convert it"
    return f"has no channel number; rename it to {path.name.removesuffix(file_ending)}_0000{file_ending}"


def _wanted_channels(target: Target, training: dict[str, list[Path]]) -> list[str]:
    """Channel numbers of a case. Colour images hold several channels a file, so the labelled cases tell."""
    files = len(next(iter(training.values()), ())) or target.channels
    return [f"{index:04d}" for index in range(files)]


def _why_not_a_case(
    case: str, files: dict[str, Path], wanted: list[str], training: dict[str, list[Path]]
) -> str | None:
    if sorted(files) != wanted:
        return f"has the channels {', '.join(sorted(files))}, the plans want {', '.join(wanted)}; complete the case"
    if f"{case}.json" == PLANES_FILE:
        return f"has the name that {PLANES_FILE} takes; rename the scan"
    if case.endswith("_seg"):
        return "ends in _seg, which nnU-Net takes for a segmentation; rename the scan"
    if case in training:
        return (
            "is a labelled case of imagesTr too, so pretraining would see validation cases; "
            "remove it from imagesUn or rename it if it is another scan"
        )
    twin = _same_file(next(iter(files.values())), training)
    return f"is the same file as imagesTr/{twin}; remove it from imagesUn" if twin else None


def _same_file(file: Path, training: dict[str, list[Path]]) -> str | None:
    """The name of a labelled image with equal content; sizes are compared first, so few files are read."""
    if not file.is_file():
        return None
    size = file.stat().st_size
    for image in (images[0] for images in training.values() if images):
        if image.is_file() and image.stat().st_size == size and filecmp.cmp(file, image, shallow=False):
            return image.name
    return None


def has_scans(images_un: Path) -> bool:
    """True when the folder holds any file that could be a scan."""
    if not images_un.is_dir():
        return False
    return any(p.is_file() and not p.name.startswith(".") and not _is_sidecar(p, "\0") for p in images_un.iterdir())
