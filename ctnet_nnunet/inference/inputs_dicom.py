"""DICOM below a folder as cases: series are found by their ids, wherever their files lie; headers decide."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ctnet_nnunet.conversion.cases import Image, case_name
from ctnet_nnunet.conversion.dicom_headers import Header, read_header
from ctnet_nnunet.conversion.sources.dicom import channel_pattern, choose_series, describe, series_image
from ctnet_nnunet.errors import CTNetError, DataError
from ctnet_nnunet.inference.inputs import Case, Found, Wanted, standing_in

Group = list[list[Header] | None]
"""The series of a case, one a channel; None where the scan lacks it."""
_NO_SCANS = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC"}
"""Modalities of what others derived from a scan."""
_MODALITY_WORDS = {
    "CT": {"ct", "cbct", "cect", "ncct"},
    "PT": {"pet", "pt", "suv", "fdg"},
    "US": {"us", "ultrasound"},
    "MR": {
        *(
            "mr",
            "mri",
            "t1",
            "t1w",
            "t1c",
            "t1ce",
            "t1gd",
            "t1n",
            "t2",
            "t2w",
            "t2f",
            "flair",
            "swi",
            "qsm",
            "pd",
            "pdw",
        ),
        *("dwi", "adc", "mprage", "mp2rage", "dixon", "cine", "bssfp", "lge"),
    },
}
"""Words of channel names, and the DICOM Modality that they can only come from."""


@dataclass
class _Study:
    """The series of one study; ``folder`` is the deepest one that holds them all."""

    folder: Path
    series: list[list[Header]] = field(default_factory=list)


def expected_modality(channel: str) -> str | None:
    """The DICOM Modality of a channel by its name; None where it does not say.

    >>> expected_modality("CT"), expected_modality("T1 post"), expected_modality("image")
    ('CT', 'MR', None)
    """
    words = set(re.findall(r"[a-z0-9]+", channel.lower()))
    found = {modality for modality, known in _MODALITY_WORDS.items() if words & known}
    return found.pop() if len(found) == 1 else None


def find_dicom(source: Path, name: str, wanted: Wanted) -> Found:
    """A case for each study; for a one-channel model, for each series that ``--channel NAME=REGEX`` fits.

    Args:
        source: A folder, or a single multi-frame file.
        name: What a case at ``source`` itself is called.
        wanted: The model's channels and the choice of series, by their descriptions.

    Raises:
        DataError: The choice of channels is unusable.
    """
    patterns = {channel: channel_pattern(f"{channel}={text}")[1] for channel, text in wanted.choice_of().items()}
    studies, found = _read(source)
    for study in studies:
        base = study.folder.relative_to(source).as_posix() if study.folder != source else name
        try:
            groups = _choose(study, patterns, wanted)
        except CTNetError as error:
            found.failures[_unused(case_name(base), found)] = str(error)
            continue
        for group in groups:
            described = len(groups) > 1 or (len(studies) > 1 and base == name)
            label = f"{base}_{_there(group)[0][0].description}" if described else base
            case = _unused(case_name(label) or "scan", found)
            try:
                found.cases.append(_case(case, group, study, wanted))
            except CTNetError as error:
                found.failures[case] = str(error)
    return found


def _read(source: Path) -> tuple[list[_Study], Found]:
    """All headers, by study and series; a folder with a damaged file is refused, its series may lack a slice."""
    headers: list[Header] = []
    found = Found()
    damaged: dict[Path, str] = {}
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or "__MACOSX" in path.parts:
            continue
        try:
            header = read_header(path)
        except DataError as error:
            damaged.setdefault(path.parent, str(error))
            continue
        if header is not None and header.text("Modality") not in _NO_SCANS:
            headers.append(header)
    if source.is_file() and headers and not headers[0].needs_dcm2niix:
        raise DataError(f"{source}: is one slice of a series; give the series' folder")
    for folder, reason in damaged.items():
        found.failures[_unused(case_name(folder.name), found)] = reason
    spoiled = {header.text("SeriesInstanceUID") for header in headers if header.path.parent in damaged}
    kept = [h for h in headers if h.path.parent not in damaged and h.text("SeriesInstanceUID") not in spoiled - {""}]
    return _by_study(kept, source), found


def _by_study(headers: list[Header], source: Path) -> list[_Study]:
    """Series without an id are their folder's; so are studies."""
    series: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        place = str(header.path.parent)
        study = header.text("StudyInstanceUID") or place
        series[study, header.text("SeriesInstanceUID") or place].append(header)
    studies: dict[str, _Study] = {}
    for (study, _), group in series.items():
        folder = _common({header.path.parent for header in group}, source)
        known = studies.setdefault(study, _Study(folder))
        known.folder = _common({known.folder, folder}, source)
        known.series.append(group)
    return list(studies.values())


def _common(folders: set[Path], source: Path) -> Path:
    first, *rest = folders
    for folder in rest:
        while first != source and not folder.is_relative_to(first):
            first = first.parent
    return source if source.is_file() else first


def _there(group: Group) -> list[list[Header]]:
    return [series for series in group if series is not None]


def _choose(study: _Study, patterns: dict[str, re.Pattern[str]], wanted: Wanted) -> list[Group]:
    """The cases of a study, each as one series a channel."""
    channels, series = list(wanted.channels), study.series
    if patterns and len(channels) == 1:
        fitting: list[Group] = [[group] for group in series if patterns[channels[0]].search(group[0].description)]
        if not fitting:
            choose_series(series, patterns[channels[0]], channels[0], study.folder)
        return fitting
    if patterns:
        return [_by_pattern(study, patterns, wanted)]
    if len(channels) > 1 or len(series) > 1:
        missing = len(series) < len(channels)
        remedy = " ".join(f"--channel {name}=REGEX" for name in channels)
        what = f"which of {len(series)} series" if not missing else f"{len(series)} series for {len(channels)} channels"
        raise DataError(f"{study.folder}: {what}? It holds {describe(series)}; choose with {remedy}")
    return [[series[0]]]


def _by_pattern(study: _Study, patterns: dict[str, re.Pattern[str]], wanted: Wanted) -> Group:
    """The series of each channel; of a group that a case may lack as a whole, none."""
    fits = {name: any(patterns[name].search(one[0].description) for one in study.series) for name in wanted.channels}
    missing = [number for number, name in enumerate(wanted.channels) if not fits[name]]
    if missing and not wanted.may_lack(missing):
        names = ", ".join(wanted.channels[number] for number in missing)
        raise DataError(
            f"{study.folder}: lacks the channel {names}; its series: {describe(study.series)}"
            f"{wanted.what_may_be_missing()}"
        )
    return [
        choose_series(study.series, patterns[name], name, study.folder) if fits[name] else None
        for name in wanted.channels
    ]


def _case(name: str, group: Group, study: _Study, wanted: Wanted) -> Case:
    notes = []
    images: list[Image | None] = []
    folder = study.folder
    for channel, headers in zip(wanted.channels, group, strict=True):
        if headers is None:
            notes.append(f"{channel}: none of the series {describe(study.series)} fits")
            images.append(None)
            continue
        expected, given = expected_modality(channel), headers[0].text("Modality")
        if expected and given in _MODALITY_WORDS and given != expected:
            raise DataError(
                f"{folder}: the series {headers[0].description!r} is {given}, the model's channel {channel}"
                f" is {expected}; give a scan of the kind that the model was trained on"
            )
        images.append(series_image(headers, folder, None))
        if len(group) > 1:
            notes.append(f"{channel}: the series {headers[0].description!r} ({len(headers)} files)")
    missing = tuple(number for number, headers in enumerate(group) if headers is None)
    return Case(name, standing_in(images), dicom=True, notes=tuple(notes), missing=missing)


def _unused(name: str, found: Found) -> str:
    """``name``, with a number behind it where another case has it."""
    taken = {case.name.lower() for case in found.cases} | {failed.lower() for failed in found.failures}
    candidate, number = name or "scan", 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
