"""Studies into a dataset: their images into imagesUn, planes.json beside it."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import SimpleITK as sitk

from ctnet_nnunet.conversion.planes.stacks import ReadStack, ReadStudy, keep_one_frame_of_reference
from ctnet_nnunet.conversion.writer import FILE_ENDING, write_image
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.image_check import check_voxels
from ctnet_nnunet.planes.geometry import disagreement, intersection, planes_of_affine
from ctnet_nnunet.planes.sidecar import (
    DEFAULT_GUESTS,
    DEFAULT_HOSTS,
    DEFAULT_SIGMA_MM,
    FILE_NAME,
    MOST_DISAGREEMENT_MM,
    Sidecar,
    SlicePlane,
    Stack,
    Study,
    case_id,
    read_sidecar,
    write_sidecar,
)

IMAGES = "imagesUn"
_RAW = "nnUNet_raw"
_DATASET = re.compile(r"Dataset\d{3}_[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Roles:
    """Host and guest roles as asked for; None: what planes.json has, else the heart's, else all."""

    hosts: tuple[str, ...] | None = None
    guests: tuple[str, ...] | None = None
    sigma_mm: float | None = None

    def __post_init__(self) -> None:
        if self.sigma_mm is not None and not 0 < self.sigma_mm < math.inf:
            raise DataError(f"--sigma {self.sigma_mm}: give a number of mm above 0")

    def settings(self, existing: Sidecar | None, roles: Sequence[str]) -> dict[str, Any]:
        """For planes.json; ``roles`` are those that studies may have."""
        old = None if existing is None or not existing.studies else existing
        hosts = self.hosts or (old.hosts if old else _present(DEFAULT_HOSTS, roles))
        guests = self.guests or (old.guests if old else _present(DEFAULT_GUESTS, roles))
        sigma = self.sigma_mm or (old.sigma_mm if old else DEFAULT_SIGMA_MM)
        return {"hosts": tuple(hosts), "guests": tuple(guests), "sigma_mm": sigma}


@dataclass
class PlanesReport:
    """What became of the studies: written ones with a line each, refusals and notes."""

    dataset: Path
    written: dict[str, str] = field(default_factory=dict)
    images: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0; 1 when something was refused; 2 when nothing could be converted."""
        return (1 if self.refused else 0) if self.written else 2


def dataset_folder(out: Path) -> Path:
    """``DatasetXXX_Name`` in $nnUNet_raw, or the path of such a folder.

    Raises:
        DataError: Another kind of name. SetupError: nnUNet_raw is not set.
    """
    if not _DATASET.fullmatch(out.name):
        raise DataError(f"--out {out}: give a dataset's folder, named as in Dataset501_Heart")
    if len(out.parts) > 1:
        return out
    raw = os.environ.get(_RAW)
    if not raw or not Path(raw).is_dir():
        raise SetupError(f"--out {out}: nnUNet_raw is not set to a folder; export it, or give a whole path")
    return Path(raw) / out


def write_studies(
    report: PlanesReport, studies: Iterable[ReadStudy], roles: Roles, known_roles: Sequence[str], force: bool
) -> None:
    """Add studies to the report's dataset; images appear, then planes.json, when all are written.

    Raises:
        DataError: A study that is there already (without ``force``), a guest or host that no study has, a disk that is
            full. Nothing is changed then.
    """
    dataset = report.dataset
    existing = read_sidecar(dataset / FILE_NAME) if (dataset / FILE_NAME).is_file() else None
    settings = roles.settings(existing, known_roles)
    entries: dict[str, Study] = {}
    with _partial(dataset) as partial:
        for study in studies:
            _add(study, entries, settings, existing, force, partial, report)
        if not entries:
            return
        kept = {} if existing is None else {k: v for k, v in existing.studies.items() if k not in entries}
        base = {} if existing is None else existing.model_dump(exclude={"studies"})
        sidecar = Sidecar(**{**base, **settings}, studies={**kept, **entries})
        require_hosts_and_guests(sidecar, report)
        old = existing.studies if existing else {}
        _commit(partial, dataset, [old[name] for name in entries if name in old])
        write_sidecar(sidecar, dataset / FILE_NAME)


def require_hosts_and_guests(sidecar: Sidecar, report: PlanesReport) -> None:
    """Raise DataError for a host or guest that no study has, with what was refused, since that may be why."""
    try:
        sidecar.require_roles(sidecar.hosts, "host", "--host")
        sidecar.require_roles(sidecar.guests, "guest", "--guest")
    except DataError as error:
        refused = "; ".join(f"{name}: {reason}" for name, reason in report.refused.items())
        raise DataError(f"{error}" + (f". Refused were: {refused}" if refused else "")) from None


def _add(
    study: ReadStudy,
    entries: dict[str, Study],
    settings: dict[str, Any],
    existing: Sidecar | None,
    force: bool,
    partial: Path,
    report: PlanesReport,
) -> None:
    """Write one study's images aside and describe it; what fails is refused by name, the rest goes on."""
    keep_one_frame_of_reference(study, settings["hosts"])
    report.notes += [f"{study.name}: {note}" for note in study.notes]
    report.refused |= {f"{study.name}: {name}": reason for name, reason in study.refused.items()}
    if existing is not None and study.name in existing.studies and not force:
        raise DataError(f"{report.dataset / FILE_NAME}: has the study {study.name} already; --force replaces it")
    stacks: dict[str, Stack] = {}
    for stack in study.stacks:
        files = list[Path]()
        try:
            stacks[stack.role] = _write_stack(study.name, stack, partial, files)
        except (DataError, RuntimeError) as error:
            for file in files:
                file.unlink(missing_ok=True)
            report.refused[f"{study.name}: {stack.source}"] = str(error).strip().splitlines()[-1]
    if not any(role in settings["hosts"] and stack.cases for role, stack in stacks.items()):
        for written in stacks.values():
            for case in written.cases:
                (partial / f"{case}_0000{FILE_ENDING}").unlink()
        empty = not study.stacks and not study.refused
        reason = "holds no DICOM or NIfTI image" if empty else f"has no usable host ({', '.join(settings['hosts'])})"
        report.refused.setdefault(study.name, reason)
        return
    reference = study.stacks[0].frame_of_reference
    entries[study.name] = Study(frame_of_reference=reference, group=study.group, stacks=stacks)
    report.notes += _parallel(study.name, entries[study.name], settings)
    report.images += sum(len(stack.cases) for stack in stacks.values())
    report.written[study.name] = ", ".join(_described(role, stack) for role, stack in stacks.items())


def _write_stack(study: str, stack: ReadStack, partial: Path, files: list[Path]) -> Stack:
    cine = len(stack.frames) > 1
    cases = []
    for number, image in enumerate(stack.frames):
        case = case_id(study, stack.role, number if cine else None)
        file = partial / f"{case}_0000{FILE_ENDING}"
        files.append(file)
        check_voxels(sitk.GetArrayViewFromImage(image), stack.source)
        write_image(image, file)
        # By another library than wrote it, and from the affine alone.
        written = nibabel.load(file)
        off = disagreement(planes_of_affine(written.affine, written.shape), stack.planes, stack.shape[1:])
        if off > MOST_DISAGREEMENT_MM:
            raise DataError(
                f"{stack.source}: its image would lie {off:.2g} mm from its planes; export the series again"
            )
        cases.append(case)
    if not cine and not stack.frames:
        case_id(study, stack.role)
    planes = tuple(SlicePlane.of(plane) for plane in stack.planes)
    return Stack(cases=tuple(cases), shape=stack.shape, planes=planes)


def _described(role: str, stack: Stack) -> str:
    slices = f"{stack.shape[0]} slice{'s' if stack.shape[0] != 1 else ''}"
    if not stack.cases:
        return f"{role} {slices} (planes alone)"
    return f"{role} {slices}" + (f" × {len(stack.cases)} frames" if len(stack.cases) > 1 else "")


def _parallel(name: str, study: Study, settings: dict[str, Any]) -> list[str]:
    """Which guests cut no host of a study."""
    notes = []
    for guest_role in settings["guests"]:
        guest = study.guest(guest_role, "middle")
        hosts = [role for role in settings["hosts"] if role in study.stacks and role != guest_role]
        if guest is None or not hosts:
            continue
        if all(intersection(study.stacks[role].stack[0], guest) is None for role in hosts):
            notes.append(f"{name}: guest {guest_role} is parallel to {', '.join(hosts)}, so it gives no line there")
    return notes


@contextmanager
def _partial(dataset: Path) -> Iterator[Path]:
    folder = dataset.parent / f".{dataset.name}.planes"
    try:
        dataset.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        raise DataError(
            f"{folder}: exists, so studies are being added to this dataset, or were when a conversion was killed; if "
            "none runs, remove the folder"
        ) from None
    except OSError as error:
        raise DataError(f"{dataset.parent}: cannot be written ({error.strerror}); nothing was converted") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _commit(partial: Path, dataset: Path, replaced: Sequence[Study]) -> None:
    """Move the images into place; those of replaced studies go first."""
    images = dataset / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    old = {f"{case}_0000{FILE_ENDING}" for study in replaced for stack in study.stacks.values() for case in stack.cases}
    new = sorted(partial.iterdir())
    foreign = next((file for file in new if file.name not in old and (images / file.name).exists()), None)
    if foreign is not None:
        raise DataError(f"{images / foreign.name}: exists and is in no study of {FILE_NAME}; move it away first")
    for name in old:
        (images / name).unlink(missing_ok=True)
    for file in new:
        os.replace(file, images / file.name)


def _present(wanted: Sequence[str], roles: Sequence[str]) -> tuple[str, ...]:
    return tuple(role for role in wanted if role in roles) or tuple(dict.fromkeys(roles))
