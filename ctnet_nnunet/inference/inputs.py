"""What there is to predict: images, a DICOM folder, a BIDS dataset, or a zip of one of them, as cases of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.read import IMAGE_ENDINGS, is_image, stem
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference.inputs_zip import is_zip, unpack

_CHANNEL = re.compile(r"_(\d{4})$")
UNPACKED = "zip"
"""The folder of a workspace that takes what a zip holds."""
_DICOM_FILE = re.compile(r"\.(dcm|ima|dicom)$", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One scan: its channels in the model's order, and what its outputs are called.

    Attributes:
        name: Of tables and pages.
        images: A file or a DICOM series for each channel.
        label_name: Of the label map, below the output folder and without ending.
        dicom: True where the first channel is a DICOM series.
        notes: What is to be said about the choice of files.
        missing: Channels that the scan lacks; another channel's image stands in for them.
    """

    name: str
    images: tuple[Image, ...]
    label_name: str = ""
    dicom: bool = False
    notes: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()

    def label_file(self, out: Path, ending: str) -> Path:
        """Where its label map goes."""
        return out / f"{self.label_name or self.name}{ending}"

    def segmentation_file(self, out: Path) -> Path:
        """Where its DICOM-SEG goes."""
        return out / f"{self.name}_seg.dcm"


@dataclass(frozen=True)
class Wanted:
    """What the model takes: its channels' names and file ending, and the user's choice of series (``NAME=CHOICE``).

    A case may lack all channels of one of the groups in ``optional``, and then no other.
    """

    channels: Sequence[str]
    ending: str
    choices: Sequence[str] = ()
    optional: Sequence[Sequence[int]] = ()

    def may_lack(self, missing: Sequence[int]) -> bool:
        """Whether these channels are a whole group that a case may lack."""
        return sorted(missing) in [sorted(group) for group in self.optional]

    def what_may_be_missing(self) -> str:
        """The end of a message about a missing channel, for a model that gets along without a whole group."""
        groups = " or ".join(f"({', '.join(self.channels[number] for number in group)})" for group in self.optional)
        return f"; a scan may lack {groups} as a whole" if groups else ""

    def choice_of(self) -> dict[str, str]:
        """Channel → choice.

        Raises:
            DataError: A choice that names no channel of the model, or not all of them.
        """
        chosen = {}
        for text in self.choices:
            name, equals, choice = text.partition("=")
            if not equals or name not in self.channels or not choice or name in chosen:
                raise DataError(f"--channel {text!r}: wanted NAME=CHOICE once for each of {', '.join(self.channels)}")
            chosen[name] = choice
        if chosen and (missing := [name for name in self.channels if name not in chosen]):
            raise DataError(f"--channel: say which is {missing[0]}, too: --channel {missing[0]}=…")
        return chosen


@dataclass
class Found:
    """The cases of a source, those that cannot be used with the reason, and the root of a BIDS dataset."""

    cases: list[Case] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    bids_root: Path | None = None


def find_cases(source: Path, wanted: Wanted, workspace: Path) -> Found:
    """List what is to be predicted; ``workspace`` takes what a zip holds.

    Raises:
        DataError: There is nothing to predict, or the choice of channels is unusable.
    """
    if not is_zip(source):
        return _find(source, source.resolve().name, wanted)
    folder = workspace / UNPACKED
    folder.mkdir()
    try:
        found = _find(unpack(source, folder), source.stem, wanted)
    except DataError as error:
        raise DataError(in_zip(str(error), source, workspace)) from None
    found.failures = {name: in_zip(reason, source, workspace) for name, reason in found.failures.items()}
    return found


def standing_in(images: Sequence[Image | None]) -> tuple[Image, ...]:
    """The images of a case, the first that is there in the place of each that is missing."""
    there = next(image for image in images if image is not None)
    return tuple(image or there for image in images)


def in_zip(text: str, archive: Path, workspace: Path) -> str:
    """A message with the archive's name in place of the folder that it was unpacked into."""
    return text.replace(str(workspace / UNPACKED), str(archive))


def _find(source: Path, name: str, wanted: Wanted) -> Found:
    from ctnet_nnunet.inference.inputs_bids import find_bids, is_bids
    from ctnet_nnunet.inference.inputs_dicom import find_dicom

    if not source.exists():
        raise DataError(
            f"{source}: is missing; give a scan, a folder of scans, a DICOM folder, a BIDS dataset or a zip"
        )
    if source.is_dir() and is_bids(source):
        return find_bids(source, wanted)
    files = _image_files(source, wanted.ending)
    if files:
        return _find_images(source, files, wanted)
    if source.is_dir() or _DICOM_FILE.search(source.name) or not source.suffix:
        found = find_dicom(source, name, wanted)
        if found.cases or found.failures:
            return found
    what = f"holds no *{wanted.ending}, no DICOM series and no BIDS subject" if source.is_dir() else "is no such scan"
    raise DataError(f"{source}: {what}; give a scan or a folder of scans in the format of the training data, or DICOM")


def _image_files(source: Path, ending: str) -> list[Path]:
    """The image files directly at ``source``: of the model's own format, or of another one for volumes."""
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    return [
        file
        for file in files
        if not file.name.startswith(".")
        and (file.name.endswith(ending) or (ending in IMAGE_ENDINGS and is_image(file)))
    ]


def _stem(file: Path, ending: str) -> str:
    return file.name[: -len(ending)] if file.name.endswith(ending) else stem(file)


def _find_images(source: Path, files: list[Path], wanted: Wanted) -> Found:
    """A folder whose files all end in ``_0000`` and so on is in nnU-Net's naming; else each file is a case."""
    ending, channels = wanted.ending, len(wanted.channels)
    stems = {file: _stem(file, ending) for file in files}
    if not all(_CHANNEL.search(name) for name in stems.values()):
        if channels != 1:
            raise DataError(
                f"{source}: the model wants {channels} channels; name the files CASE_0000{ending}, CASE_0001{ending}, …"
            )
        return _unique(stems)
    if source.is_file() and channels > 1:
        wanted_stem = stems[source][:-5]
        stems = {
            file: name
            for file in _image_files(source.parent, ending)
            if (name := _stem(file, ending))[:-5] == wanted_stem and _CHANNEL.search(name)
        }
    return _by_number(stems, wanted)


def _unique(stems: dict[Path, str]) -> Found:
    found = Found()
    for file, name in stems.items():
        same = [other.name for other, its in stems.items() if its == name and other != file]
        if same:
            found.failures[file.name] = f"becomes the case {name} as {', '.join(same)} does; rename one of them"
        else:
            found.cases.append(Case(name, (Image(file),)))
    return found


def _by_number(stems: dict[Path, str], wanted: Wanted) -> Found:
    channels = len(wanted.channels)
    grouped: dict[str, dict[int, Path]] = {}
    found = Found()
    for file, name in stems.items():
        numbers = grouped.setdefault(name[:-5], {})
        if int(name[-4:]) in numbers:
            found.failures[name[:-5]] = f"channel {name[-4:]} is there twice, as {numbers[int(name[-4:])].name} too"
        numbers[int(name[-4:])] = file
    for name, numbers in grouped.items():
        missing = [number for number in range(channels) if number not in numbers]
        if len(numbers) + len(missing) != channels:
            found.failures[name] = f"channel {max(numbers):04d} is one too many: the model wants {channels}"
        elif missing and not wanted.may_lack(missing):
            lacking = f"channel {missing[0]:04d} is missing: the model wants {channels}"
            found.failures[name] = lacking + wanted.what_may_be_missing()
        elif name not in found.failures:
            images = [Image(numbers[number]) if number in numbers else None for number in range(channels)]
            found.cases.append(Case(name, standing_in(images), missing=tuple(missing)))
    return found
