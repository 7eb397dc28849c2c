"""``ctnet convert planes``: studies from a folder, out of volumes, or the dataset's own labelled scans."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.conversion.cases import case_name
from ctnet_nnunet.conversion.planes.dicom import read_dicom_study, refuse_series
from ctnet_nnunet.conversion.planes.folders import compiled_pattern, study_folders
from ctnet_nnunet.conversion.planes.nifti import read_nifti_study
from ctnet_nnunet.conversion.planes.reslice import SCHEMES, Reslicing, reslice_volume
from ctnet_nnunet.conversion.planes.stacks import ReadStudy, RolePattern, parse_roles
from ctnet_nnunet.conversion.planes.write import (
    PlanesReport,
    Roles,
    dataset_folder,
    require_hosts_and_guests,
    write_studies,
)
from ctnet_nnunet.conversion.read import is_image, stem
from ctnet_nnunet.errors import CTNetError, DataError
from ctnet_nnunet.files import text_hash
from ctnet_nnunet.image_check import read_image_header
from ctnet_nnunet.planes.geometry import planes_of_grid
from ctnet_nnunet.planes.sidecar import (
    FILE_NAME,
    Sidecar,
    SlicePlane,
    Stack,
    Study,
    read_sidecar,
    require_role_name,
    write_sidecar,
)

_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class PlanesRequest:
    """What was asked for; see ``ctnet convert planes --help``."""

    out: Path
    roles: Roles
    patterns: Sequence[str] = ()
    study_pattern: str | None = None
    force: bool = False
    max_voxels: int = 1024**3


def convert_studies(source: Path, request: PlanesRequest) -> PlanesReport:
    """Studies below ``source``, one folder each, of DICOM or of NIfTI files.

    Raises:
        DataError: No folder, no study, no ``--role``, or what :func:`write_studies` raises.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    patterns = parse_roles(request.patterns)
    if not patterns:
        raise DataError("--role: say which series or files are which view, for example --role sax=SAX --role 2ch=2CH")
    known = [item.role for item in patterns]
    guests = request.roles.guests or known
    folders, refused = study_folders(source, request.study_pattern)

    def studies() -> Iterator[ReadStudy]:
        for name, files in folders.items():
            yield _read(name, files, patterns, guests, request.max_voxels)

    report = PlanesReport(dataset_folder(request.out), refused=refused)
    write_studies(report, studies(), request.roles, known, request.force)
    _say_what_is_missing(report)
    return report


def reslice_studies(volumes: Path, how: Reslicing, request: PlanesRequest) -> PlanesReport:
    """Studies cut out of a volume, or of every volume of a folder.

    Raises:
        DataError: No volume, or what :func:`write_studies` raises.
    """
    files = [volumes] if volumes.is_file() else sorted(p for p in volumes.glob("*") if is_image(p))
    if not files:
        raise DataError(f"{volumes}: holds no volume; give a NIfTI file or a folder of them")
    failed: dict[str, str] = {}
    by_name: dict[str, Path] = {}
    for file in files:
        name = case_name(_CHANNEL.sub("", stem(file)))
        if name in by_name:
            failed[file.name] = f"becomes the study {name!r} as {by_name[name].name} does; rename it, or move it away"
        else:
            by_name[name] = file

    def studies() -> Iterator[ReadStudy]:
        for number, (name, file) in enumerate(by_name.items()):
            try:
                yield from reslice_volume(name, file, how, number, request.max_voxels)
            except CTNetError as error:
                report.refused[name] = str(error)

    roles = [view.role for view in SCHEMES[how.scheme]]
    hosts = tuple(view.role for view in SCHEMES[how.scheme] if view.host)
    guests = tuple(view.role for view in SCHEMES[how.scheme] if not view.host)
    asked = request.roles
    chosen = Roles(asked.hosts or hosts, asked.guests or guests, asked.sigma_mm)
    report = PlanesReport(dataset_folder(request.out), refused=failed)
    write_studies(report, studies(), chosen, roles, request.force)
    _say_what_is_missing(report)
    return report


def describe_labelled(role: str, request: PlanesRequest) -> PlanesReport:
    """Enter the dataset's own labelled scans into planes.json as stacks of ``role``; no image is written.

    Their images, never their labels, then take part in the pretraining of folds whose training cases they are.
    ``study_pattern``'s first group finds the patient in a case's name.

    Raises:
        DataError: No labelled scan, a role's name that is none, a host or guest that no study has.
    """
    dataset = dataset_folder(request.out)
    require_role_name(role)
    files = sorted(file for file in (dataset / "imagesTr").glob("*") if is_image(file)) if dataset.is_dir() else []
    if not files:
        raise DataError(f"{dataset / 'imagesTr'}: holds no scan")
    existing = read_sidecar(dataset / FILE_NAME) if (dataset / FILE_NAME).is_file() else None
    report, studies = PlanesReport(dataset), dict[str, Study]()
    for file in files:
        name = stem(file)
        if not name.endswith("_0000"):
            continue
        case = name.removesuffix("_0000")
        try:
            header = read_image_header(file, request.max_voxels)
            if len(header.size) != 3:
                raise DataError(f"{file.name}: is a 2D image, which has no place in the patient")
        except DataError as error:
            report.refused[case] = str(error)
            continue
        planes = planes_of_grid(header.size, header.spacing, header.origin, header.direction)
        shape = (header.size[2], header.size[1], header.size[0])
        stack = Stack(cases=(case,), shape=shape, planes=tuple(map(SlicePlane.of, planes)))
        group = _group(case, request.study_pattern)
        studies[case] = Study(frame_of_reference=text_hash(case), group=group, stacks={role: stack})
        report.written[case] = f"{role} {shape[0]} slices"
    settings = request.roles.settings(existing, [role])
    kept = {} if existing is None else existing.studies
    if taken := [name for name in studies if name in kept and not request.force]:
        raise DataError(f"{dataset / FILE_NAME}: has the study {taken[0]} already; --force replaces it")
    base = {} if existing is None else existing.model_dump(exclude={"studies"})
    if studies:
        sidecar = Sidecar(**{**base, **settings}, studies={**kept, **studies})
        require_hosts_and_guests(sidecar, report)
        write_sidecar(sidecar, dataset / FILE_NAME)
        if role not in sidecar.hosts:
            hosts = " ".join(f"--host {host}" for host in (*sidecar.hosts, role))
            report.notes.append(
                f"{role} is no host ({', '.join(sidecar.hosts)} {'are' if len(sidecar.hosts) > 1 else 'is'}), so "
                f"pretraining does not look at these scans; enter them again with {hosts} --force"
            )
    return report


def _group(case: str, pattern: str | None) -> str:
    if pattern is None:
        return case
    match = compiled_pattern(pattern).search(case)
    if match is None:
        raise DataError(f"--study-pattern {pattern!r}: does not fit the case {case}; its first group names the patient")
    return match[1]


def _read(
    name: str, files: Path | list[Path], patterns: Sequence[RolePattern], guests: Sequence[str], max_voxels: int
) -> ReadStudy:
    images = files if isinstance(files, list) else sorted(path for path in files.rglob("*") if is_image(path))
    if images:
        study = read_nifti_study(name, images, patterns, max_voxels)
        if isinstance(files, Path):
            refuse_series(study, files)
        return study
    assert isinstance(files, Path)
    return read_dicom_study(name, files, patterns, guests, max_voxels)


def _say_what_is_missing(report: PlanesReport) -> None:
    """What nnU-Net will still want of the dataset."""
    if not report.written:
        return
    file = report.dataset / "dataset.json"
    if not file.is_file():
        report.notes.append(f"{file} is not there yet: nnU-Net plans on the labelled scans, which lie in imagesTr")
        return
    try:
        channels = json.loads(file.read_text(encoding="utf-8"))["channel_names"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if len(channels) != 1:
        report.notes.append(
            f"the dataset has {len(channels)} channels, these scans one: preprocessing will refuse them"
        )
