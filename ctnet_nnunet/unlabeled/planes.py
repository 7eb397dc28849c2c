"""planes.json beside imagesUn: held against the images' headers, then kept beside the preprocessed scans."""

from __future__ import annotations

from pathlib import Path

from ctnet_nnunet.errors import DataError, PlanError
from ctnet_nnunet.image_check import ImageHeader, read_image_header
from ctnet_nnunet.planes.geometry import disagreement, planes_of_grid
from ctnet_nnunet.planes.sidecar import (
    FILE_NAME,
    MOST_DISAGREEMENT_MM,
    SEPARATOR,
    Sidecar,
    Stack,
    read_sidecar,
    write_sidecar,
)
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.unlabeled.cases import Listing, training_files
from ctnet_nnunet.unlabeled.target import Target, configuration_block

READER = "SimpleITKIO"


def planes_of(target: Target) -> Sidecar | None:
    """The dataset's planes.json; None where there is none.

    Raises:
        DataError: It cannot be used.
        PlanError: The plans read scans with something else than SimpleITKIO.
    """
    file = target.raw / FILE_NAME
    if not file.is_file():
        return None
    sidecar = read_sidecar(file)
    reader = target.plans.get("image_reader_writer")
    if reader != READER:
        raise PlanError(
            f"{file}: the plans read scans with {reader}, which does not keep where slices lie; add "
            f'"overwrite_image_reader_writer": "{READER}" to dataset.json, plan and preprocess again'
        )
    return sidecar


def is_of_labelled_cases(sidecar: Sidecar, target: Target) -> bool:
    """Whether every image that planes.json names is a labelled case, so that imagesUn may be empty."""
    labelled = training_files(target.raw, target.dataset_json)
    return all(case in labelled for case, _, _ in sidecar.cases())


def single_slices(sidecar: Sidecar) -> set[str]:
    """The cases that are one slice."""
    return {case for case, study, role in sidecar.cases() if sidecar.studies[study].stacks[role].shape[0] == 1}


def check_planes(sidecar: Sidecar, target: Target, found: Listing) -> list[str]:
    """Move what disagrees with planes.json from the listing's cases to its refusals; returns what is to be said.

    Images of one slice are left out, since as guests their planes are enough; but hosts stay in a 2d configuration.
    """
    stacks = {case: sidecar.studies[study].stacks[role] for case, study, role in sidecar.cases()}
    hosts = _hosts(sidecar, target)
    others = {case for case, _, role in sidecar.cases() if role not in hosts} & single_slices(sidecar)
    single = [case for case in found.cases if case in others]
    for case in single:
        del found.cases[case]
    for case, files in list(found.cases.items()):
        reason = _why_not(case, stacks.get(case), files[0])
        if reason:
            found.refused[case] = reason
            del found.cases[case]
    labelled = training_files(target.raw, target.dataset_json)
    known = {*found.cases, *found.refused, *single, *labelled}
    notes = []
    if single:
        notes.append(f"{len(single)} images of one slice are not preprocessed, their planes in {FILE_NAME} are enough")
    if absent := [case for case in stacks if case not in known]:
        notes.append(f"{FILE_NAME} names {len(absent)} cases in neither imagesUn nor imagesTr, {absent[0]} for one")
    return notes


def _hosts(sidecar: Sidecar, target: Target) -> set[str]:
    """Roles that planes.json or the plans have as hosts; none in a 3d configuration, which has none."""
    name = str(target.plans["plans_name"])
    block = configuration_block(target.plans, target.configuration, name)
    if len(block["patch_size"]) != 2:
        return set()
    options = read_options(block.get("ctnet"), f"plans {name}")
    return {*sidecar.hosts, *sidecar.settings(options.model_dump())["hosts"]}


def keep_planes(target: Target, sidecar: Sidecar | None) -> None:
    """Write the copy that trainers read; without planes.json an older copy goes."""
    file = target.folder / FILE_NAME
    if sidecar is None:
        file.unlink(missing_ok=True)
    else:
        write_sidecar(sidecar, file)


def _why_not(case: str, stack: Stack | None, file: Path) -> str:
    if stack is None:
        if SEPARATOR not in case:
            return ""
        return f"holds {SEPARATOR}, which is reserved for imaging planes, and {FILE_NAME} does not name it; rename it"
    try:
        header = read_image_header(file)
    except DataError as error:
        return str(error)
    return disagrees(header, stack)


def disagrees(header: ImageHeader, stack: Stack) -> str:
    """Why an image is not the stack that planes.json describes; empty where it is."""
    shape = tuple(reversed(header.size))
    if shape != stack.shape:
        return f"is {shape} voxels (slices, rows, columns), {FILE_NAME} says {stack.shape}; convert the study again"
    planes = planes_of_grid(header.size, header.spacing, header.origin, header.direction)
    off = disagreement(planes, stack.stack, stack.shape[1:])
    if off <= MOST_DISAGREEMENT_MM:
        return ""
    return f"its header and {FILE_NAME} put its slices up to {off:.2g} mm apart; convert the study again"
