"""planes.json: which cases are slices of which study, and where each slice lies in the patient.

Redundant with the images' own headers on purpose: what disagrees is found when it is read, and a guest needs no image.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ctnet_nnunet.errors import CTNetError, DataError
from ctnet_nnunet.files import write_text
from ctnet_nnunet.planes.geometry import LocationAxis, Plane, plane_from_dicom

FILE_NAME = "planes.json"
SEPARATOR = "__"
MOST_DISAGREEMENT_MM = 0.05
DEFAULT_HOSTS, DEFAULT_GUESTS, DEFAULT_SIGMA_MM = ("SAX",), ("2CH", "4CH"), 7.56
SETTINGS = ("hosts", "guests", "sigma_mm", "guest_slice", "location_axis")
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_PARALLEL = math.cos(math.radians(1.0))

Number = Annotated[float, Field(allow_inf_nan=False)]
GuestSlice = Literal["middle"] | Annotated[int, Field(ge=0, strict=True)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SlicePlane(_Model):
    """A slice in DICOM's terms, mm and LPS; ``pixel_spacing`` has the distance of rows first."""

    ipp: tuple[Number, Number, Number]
    iop: tuple[Number, Number, Number, Number, Number, Number]
    pixel_spacing: tuple[Number, Number]
    thickness: Number = 0.0

    @property
    def plane(self) -> Plane:
        return plane_from_dicom(self.ipp, self.iop, self.pixel_spacing, self.thickness)

    @staticmethod
    def of(plane: Plane) -> SlicePlane:
        return SlicePlane(
            ipp=plane.position,
            iop=(*plane.columns, *plane.rows),
            pixel_spacing=plane.spacing,
            thickness=plane.thickness,
        )


class Stack(_Model):
    """Parallel slices of one role. ``cases`` are its images, one for each cine frame; none for a guest without image.

    ``shape`` is (slices, rows, columns); ``planes`` are the slices in the order of the images' z axis.
    """

    cases: tuple[str, ...] = ()
    shape: tuple[int, int, int]
    planes: Annotated[tuple[SlicePlane, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_plane_a_slice(self) -> Stack:
        if self.shape[0] != len(self.planes) or min(self.shape) < 1:
            raise ValueError(f"{len(self.planes)} planes for the shape {self.shape}")
        try:
            found = self.stack
        except CTNetError as error:
            raise ValueError(str(error)) from None
        if any(abs(plane.normal @ found[0].normal) < _PARALLEL for plane in found):
            raise ValueError("its slices are not parallel")
        return self

    @property
    def stack(self) -> list[Plane]:
        return [plane.plane for plane in self.planes]


class Study(_Model):
    """Stacks by role, in one frame of reference. Studies of one ``group`` (a person) stay on one side of a split."""

    frame_of_reference: str
    group: str = ""
    stacks: dict[str, Stack]

    def guest(self, role: str, guest_slice: GuestSlice) -> Plane | None:
        """The slice of a guest's stack that others are cut with; None where the study has no such role or slice."""
        stack = self.stacks.get(role)
        if stack is None:
            return None
        index = len(stack.planes) // 2 if guest_slice == "middle" else guest_slice
        return stack.planes[index].plane if index < len(stack.planes) else None


class Sidecar(_Model):
    """The file; the settings are defaults that the plan's ``ctnet`` block may replace."""

    version: Literal[1] = 1
    coordinate_system: Literal["LPS"] = "LPS"
    hosts: Names = DEFAULT_HOSTS
    guests: Names = DEFAULT_GUESTS
    sigma_mm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = DEFAULT_SIGMA_MM
    guest_slice: GuestSlice = "middle"
    location_axis: LocationAxis = "auto"
    studies: dict[str, Study] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_case_once(self) -> Sidecar:
        seen = set[str]()
        for case, _, _ in self.cases():
            if case in seen:
                raise ValueError(f"the case {case} is in two stacks")
            seen.add(case)
        return self

    def cases(self) -> Iterator[tuple[str, str, str]]:
        """Case, study and role of every image."""
        for name, study in self.studies.items():
            for role, stack in study.stacks.items():
                yield from ((case, name, role) for case in stack.cases)

    def group_of(self, study: str) -> str:
        """What keeps studies on one side of a split."""
        return self.studies[study].group or study

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Hosts, guests, … as the ``planes_…`` options have them; where one is None, as the file has it."""
        given = {name: options.get(f"planes_{name}") for name in SETTINGS}
        return {name: getattr(self, name) if value is None else value for name, value in given.items()}

    def roles(self) -> list[str]:
        """All roles that any study has, sorted."""
        return sorted({role for study in self.studies.values() for role in study.stacks})

    def require_roles(self, wanted: Sequence[str], what: str, where: str) -> None:
        """Raise DataError for a role that no study has; ``what`` and ``where`` are for the message."""
        known = self.roles()
        if missing := [role for role in wanted if role not in known]:
            raise DataError(f"{where}: {what} {missing[0]!r}: no study has this role; there are {', '.join(known)}")


def case_id(study: str, role: str, frame: int | None = None) -> str:
    """``STUDY__ROLE`` or, for a cine frame, ``STUDY__ROLE__f03``.

    Raises:
        DataError: A study or role that holds the separator or ends in what would become one.
    """
    for part, what in ((study, "study"), (role, "role")):
        if SEPARATOR in part or part.startswith("_") or part.endswith("_"):
            raise DataError(f"{what} {part!r}: {SEPARATOR} is reserved between study, role and frame; rename it")
    require_role_name(role)
    return SEPARATOR.join([study, role, *([] if frame is None else [f"f{frame:02d}"])])


def require_role_name(role: str) -> None:
    """Raise DataError for what cannot be a role's name."""
    if not _ROLE.fullmatch(role):
        raise DataError(f"role {role!r}: use letters, digits and - alone, as in SAX or 2CH")


def read_sidecar(file: Path) -> Sidecar:
    """Read and judge planes.json.

    Raises:
        DataError: Missing, no JSON, an unknown or ill-typed key (named), planes that make no stack.
    """
    try:
        return Sidecar.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); write it with `ctnet convert planes`") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{file}: {key or 'content'}: {said}; correct it or convert the studies again") from None


def write_sidecar(sidecar: Sidecar, file: Path) -> None:
    """Write planes.json as a whole or not at all; the same content gives the same bytes."""
    write_text(file, json.dumps(sidecar.model_dump(mode="json"), indent=1) + "\n", DataError)
