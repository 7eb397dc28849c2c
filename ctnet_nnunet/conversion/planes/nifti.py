"""A study of imaging planes from NIfTI files (or MGH, NRRD), one file a stack; 4D files are cine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ctnet_nnunet import nifti_check
from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.planes.stacks import ReadStack, ReadStudy, RolePattern, role_of, slices_last
from ctnet_nnunet.conversion.read import read_image, stem, volumes_in
from ctnet_nnunet.errors import DataError


def read_nifti_study(name: str, files: Sequence[Path], patterns: Sequence[RolePattern], max_voxels: int) -> ReadStudy:
    """Read the files that have a role; what cannot be used is refused, the others are kept.

    NIfTI knows no frame of reference: files of one study are taken to share theirs.
    """
    study = ReadStudy(name)
    by_role: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        try:
            role = role_of(patterns, stem(file))
        except DataError as error:
            study.refused[file.name] = str(error)
            continue
        if role:
            by_role[role].append(file)
        else:
            study.refused[file.name] = "no --role fits it"
    for role, found in by_role.items():
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            study.refused[names] = f"are {len(found)} files for the role {role}; make --role narrower"
            continue
        try:
            study.stacks.append(_stack(role, found[0], max_voxels, study.notes))
        except DataError as error:
            study.refused[found[0].name] = str(error).replace(f"{found[0].parent}/", "")
    return study


def _stack(role: str, file: Path, max_voxels: int, notes: list[str]) -> ReadStack:
    count = volumes_in(file) if nifti_check.is_nifti(file) else 1
    volumes = [None] if count == 1 else list(range(count))
    frames = []
    for volume in volumes:
        read, said = read_image(Image(file, volume), max_voxels)
        if read.GetDimension() != 3:
            raise DataError(f"{file}: is a 2D image, which has no place in the patient; write it as one slice in 3D")
        notes += [note for note in said if note not in notes]
        frames.append(slices_last(read))
    return ReadStack.of_images(role, file.name, frames)
