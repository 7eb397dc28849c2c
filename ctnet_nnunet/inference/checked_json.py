"""Reading a model's JSON: of limited size and depth, each key once, and typed, with one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ctnet_nnunet.errors import CTNetError, DataError, PlanError

MAX_JSON_BYTES = 32 * 2**20

_Kind = TypeVar("_Kind", bound=BaseModel)


def checked(kind: type[_Kind], content: object, where: str, error: type[CTNetError] = PlanError) -> _Kind:
    """``content`` as ``kind``.

    Raises:
        CTNetError: Of the given type; one line with the file, the key and what is wrong with it.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        steps = [str(part) for part in first["loc"] if not str(part)[:1].isupper()]
        key = ".".join(step for step in steps if "[" not in step)
        reason = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f" (found {_short(first['input'])})"
        told = f"{key}: " if key else ""
        raise error(f"{where}: {told}{reason[:1].lower()}{reason[1:]}{given}; take the model again") from None
    except RecursionError:
        raise error(f"{where}: is nested too deep; take the model again") from None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}…"


def merged_configuration(plans: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A configuration over what it inherits, as nnU-Net merges them.

    Raises:
        PlanError: If a parent is missing, no table, or inherits from its child.
    """
    configurations, chain = plans["configurations"], [name]
    while True:
        block = configurations.get(chain[-1]) if isinstance(chain[-1], str) else None
        if not isinstance(block, Mapping):
            raise PlanError(f"{where}: configuration {_short(chain[-1])} is missing or no table; take the model again")
        parent = block.get("inherits_from")
        if parent is None:
            break
        if parent in chain:
            raise PlanError(f"{where}: configuration {parent} inherits from itself; take the model again")
        chain.append(parent)
    merged = {key: value for link in reversed(chain) for key, value in configurations[link].items()}
    merged.pop("inherits_from", None)
    return merged


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of limited size.

    Raises:
        DataError: If the file is missing, too large, no JSON, or no object.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{file}: is larger than {MAX_JSON_BYTES >> 20} MB, which no model's JSON is")
        return parse_json(file.read_bytes(), str(file))
    except OSError:
        raise DataError(f"{file}: missing; give the model's folder with -m (it holds plans.json and fold_X)") from None


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Bytes as a JSON object; ``where`` names them in the errors.

    Raises:
        DataError: If they are none, name a key twice or are nested too deep.
    """
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise DataError(f"{where}: is nested too deep; take the model again") from None
    except ValueError as error:
        raise DataError(f"{where}: no valid JSON ({str(error)[:200]}); take the model again") from None
    if not isinstance(content, dict):
        raise DataError(f"{where}: holds no JSON object; take the model again")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may take different ones of two equal keys."""
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = sorted(key for key, _ in pairs)
        twice = next(a for a, b in pairwise(keys) if a == b)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return table
