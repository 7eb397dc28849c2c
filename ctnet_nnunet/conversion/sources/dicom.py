"""Folders of DICOM files: a folder is a case, its series are the channels."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from ctnet_nnunet.conversion.cases import Case, Image, Listing, case_name, relative
from ctnet_nnunet.conversion.dicom_headers import Header, read_header
from ctnet_nnunet.conversion.dicom_pixels import require_dcm2niix
from ctnet_nnunet.conversion.dicom_series import series_geometry
from ctnet_nnunet.conversion.read import is_image, stem
from ctnet_nnunet.errors import CTNetError, DataError


def list_dicom(root: Path, cases: str, channels: list[str], labels: Path | None, volume: int | None = None) -> Listing:
    """List the case folders below ``root``; every header is read and every series' geometry judged.

    Args:
        cases: which folders are cases, for example ``*`` or ``*/*``; a ``root`` that holds DICOM files is one itself.
        channels: ``NAME=REGEX`` on the series' description, one a channel; without any, a case has one series.
        labels: a folder of label maps named as the cases, in any image format but DICOM.
        volume: which volume of a time series.

    Raises:
        DataError: no such folder, no DICOM file, an unusable expression.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    patterns = dict(channel_pattern(text) for text in channels)
    masks = {stem(path): path for path in sorted(labels.iterdir()) if is_image(path)} if labels else {}
    listing = Listing(root, list(patterns) or ["image"])
    for folder in _case_folders(root, cases):
        name = case_name(folder.relative_to(root).as_posix()) if folder != root else case_name(root.resolve().name)
        try:
            found = _series(folder)
            if not found:
                continue
            chosen = [choose_series(found, pattern, channel, folder) for channel, pattern in patterns.items()]
            chosen = chosen or [_only(found, folder)]
            images = tuple(series_image(headers, folder, volume) for headers in chosen)
        except CTNetError as error:
            listing.refused[name] = str(error).replace(f"{root}/", "")
            continue
        first = chosen[0][0]
        mask = Image(masks[name]) if name in masks else None
        # The person's id groups the folds; it is not written anywhere.
        listing.cases.append(Case(name, images, mask, first.text("PatientID"), first.text("InstitutionName")))
    known = {case.name for case in listing.cases} | set(listing.refused)
    for name in sorted(masks.keys() - known):
        listing.refused[relative(masks[name], root)] = "is a label map without an image; name it after a case's folder"
    if not listing.cases and not listing.refused:
        raise DataError(f"{root}: holds no DICOM image in the folders {cases!r}; check the folder and --cases")
    return listing


def channel_pattern(text: str) -> tuple[str, re.Pattern[str]]:
    """``NAME=REGEX`` as a name and an expression that knows no case.

    Raises:
        DataError: it is neither.
    """
    name, equals, pattern = text.partition("=")
    if not equals or not name:
        raise DataError(f"--channel {text!r}: wanted NAME=REGEX, for example FLAIR=flair")
    try:
        return name, re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise DataError(f"--channel {text!r}: is no regular expression ({error})") from None


def _case_folders(root: Path, cases: str) -> list[Path]:
    if any(path.is_file() and _is_dicom(path) for path in sorted(root.iterdir())):
        return [root]
    return [path for path in sorted(root.glob(cases)) if path.is_dir()]


def _is_dicom(path: Path) -> bool:
    try:
        return read_header(path) is not None
    except DataError:
        return True


def _series(folder: Path) -> list[list[Header]]:
    """The images of a folder and of those below it, by series; a series without an id is its folder."""
    groups: dict[str, list[Header]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (header := read_header(path)) is not None:
            groups[header.text("SeriesInstanceUID") or str(path.parent)].append(header)
    return [groups[key] for key in sorted(groups, key=lambda key: groups[key][0].path)]


def describe(series: list[list[Header]]) -> str:
    """The series' descriptions and numbers of files, for a message."""
    return ", ".join(f"{headers[0].description or 'without a name'!r} ({len(headers)} files)" for headers in series)


def choose_series(series: list[list[Header]], pattern: re.Pattern[str], channel: str, folder: Path) -> list[Header]:
    """The one series whose description fits.

    Raises:
        DataError: none or several do.
    """
    fitting = [headers for headers in series if pattern.search(headers[0].description)]
    if len(fitting) != 1:
        what = f"lacks the channel {channel}" if not fitting else f"has {len(fitting)} series for the channel {channel}"
        raise DataError(f"{folder}: {what}; its series: {describe(series)}")
    return fitting[0]


def _only(series: list[list[Header]], folder: Path) -> list[Header]:
    if len(series) > 1:
        raise DataError(
            f"{folder}: holds {len(series)} series: {describe(series)}; choose with --channel NAME=REGEX, "
            "or separate them"
        )
    return series[0]


def series_image(headers: list[Header], folder: Path, volume: int | None) -> Image:
    """The series as one image, its slices in order.

    Raises:
        DataError: it makes no volume.
        SetupError: it needs dcm2niix, which is not installed.
    """
    reasons = {header.needs_dcm2niix for header in headers}
    reason = next(iter(sorted(reasons, reverse=True)))
    if reason:
        require_dcm2niix(str(folder), reason)
        return Image(folder, volume, tuple(header.path for header in headers))
    return Image(folder, None, series_geometry(headers, str(folder)).files)
