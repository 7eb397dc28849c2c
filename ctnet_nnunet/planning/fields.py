"""Types of the ``ctnet`` block's values; all strict, because pydantic would read ``true`` as 1 and ``"20"`` as 20."""

from __future__ import annotations

from dataclasses import MISSING, fields
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import Field

Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
"""What numpy's generators take."""
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Switch = Annotated[bool, Field(strict=True)]


def fields_of(options: type[Any]) -> dict[str, Any]:
    """Every field of an options dataclass with its type and default, as pydantic's ``create_model`` wants them."""
    hints = get_type_hints(options)
    return {
        field.name: (_strict(hints[field.name]), field.default if field.default is not MISSING else ...)
        for field in fields(options)
    }


def _strict(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(_strict(item) for item in get_args(kind))]  # noqa: UP007 - built from a tuple
    return Annotated[kind, Field(strict=True)] if kind in (bool, int, float) else kind
