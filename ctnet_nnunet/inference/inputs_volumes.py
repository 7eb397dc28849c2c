"""4D NIfTI files: a time series is no scan; the user says which of its volumes are."""

from __future__ import annotations

import re
from dataclasses import replace

from ctnet_nnunet import nifti_check
from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.read import volumes_in
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.inference.inputs import Case, Found

_FIRST, _ALL = "first", "all"
_NUMBER = re.compile(r"\d{1,6}")


def check_choice(choice: str | None) -> None:
    """Refuse a ``--volume`` that is neither a number nor ``first`` nor ``all``.

    Raises:
        SetupError: It is something else.
    """
    if choice is not None and choice not in (_FIRST, _ALL) and not _NUMBER.fullmatch(choice):
        raise SetupError(f"--volume {choice!r}: a number from 0 on, {_FIRST} or {_ALL}")


def choose_volumes(found: Found, choice: str | None) -> None:
    """Replace each 4D file's case by one for each chosen volume; without a choice it fails with a line that says how.

    Args:
        found: Changed in place.
        choice: A number, ``first``, ``all`` or None.
    """
    chosen = dict[str, Case]()
    for case in found.cases:
        try:
            for one in _chosen(case, choice):
                if one.name in chosen:
                    raise DataError(f"{one.images[0]}: becomes the case {one.name}, which is there already; rename it")
                chosen[one.name] = one
        except DataError as error:
            found.failures[case.name] = str(error)
    found.cases[:] = chosen.values()


def _chosen(case: Case, choice: str | None) -> list[Case]:
    counts = [_volumes(image) for image in case.images]
    count = max(counts)
    if count == 1:
        return [case]
    path = case.images[counts.index(count)].path
    if len(case.images) > 1:
        raise DataError(f"{path}: holds {count} volumes; a model of several channels wants one 3D file for each")
    if choice is None:
        raise DataError(f"{path}: is a series of {count} volumes; choose with --volume 0 to {count - 1}, first or all")
    if choice == _ALL:
        digits = len(str(count - 1))
        return [_volume(case, index, f"_t{index:0{digits}d}") for index in range(count)]
    index = 0 if choice == _FIRST else int(choice)
    if index >= count:
        raise DataError(f"{path}: has no volume {index}; --volume takes 0 to {count - 1} here")
    return [_volume(case, index, "")]


def _volumes(image: Image) -> int:
    """1 for everything but a 4D NIfTI; what cannot be read is judged later, by its own message."""
    if image.slices or not nifti_check.is_nifti(image.path):
        return 1
    try:
        return volumes_in(image.path)
    except DataError:
        return 1


def _volume(case: Case, index: int, suffix: str) -> Case:
    return replace(
        case,
        name=case.name + suffix,
        images=(replace(case.images[0], volume=index),),
        label_name=case.label_name and case.label_name + suffix,
        notes=(*case.notes, f"volume {index} of {case.images[0].path.name}"),
    )
