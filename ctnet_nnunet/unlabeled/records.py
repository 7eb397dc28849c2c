"""The record of a preprocessed scan: what it was made from, and the sign that it is complete.

``CASE.json`` beside ``CASE.b2nd`` is written last and removed first, so a case without it does not count. It holds the
input files (name, size, time, SHA-1), the hash of the plan's preprocessing, and the sizes of the written files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ctnet_nnunet.planes.sidecar import FILE_NAME as PLANES_FILE

_FORMAT = 1
#: Written for each case, in this order; the record follows.
SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")

_PLAN_KEYS = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")
_CONFIGURATION_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def preprocessing_hash(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """Hash what decides the voxels: geometry, normalisation and resampling, but neither network nor patch size.

    Args:
        plans: the whole plans.
        configuration: the resolved block (after ``inherits_from``).

    Raises:
        KeyError: a part is missing.
    """
    parts = [{key: plans[key] for key in _PLAN_KEYS}, {key: configuration[key] for key in _CONFIGURATION_KEYS}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, case: str, plan_hash: str, inputs: Iterable[dict[str, Any]]) -> None:
    """Write ``CASE.json`` into ``folder``, with the sizes of the files that lie beside it."""
    record = {
        "format": _FORMAT,
        "plan": plan_hash,
        "inputs": list(inputs),
        "outputs": {case + suffix: (folder / (case + suffix)).stat().st_size for suffix in SUFFIXES},
    }
    (folder / f"{case}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_record(folder: Path, case: str) -> dict[str, Any] | None:
    """The record of a complete case; None when it is missing, foreign, or its files are not what it says."""
    try:
        record = json.loads((folder / f"{case}.json").read_text(encoding="utf-8"))
        complete = record["format"] == _FORMAT and all(
            (folder / name).stat().st_size == size for name, size in record["outputs"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if complete and isinstance(record.get("plan"), str) else None


def is_current(folder: Path, case: str, plan_hash: str, files: list[Path]) -> bool:
    """True when ``case`` is complete and was made by this plan from exactly these files."""
    record = read_record(folder, case)
    if record is None or record["plan"] != plan_hash or len(record["inputs"]) != len(files):
        return False
    return all(_is_unchanged(known, file) for known, file in zip(record["inputs"], files, strict=True))


def describe_input(file: Path) -> dict[str, Any]:
    """Name, size, time and SHA-1 of an input file; taken before it is read, so that a later change shows."""
    status = file.stat()
    return {"name": file.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha1": sha1(file)}


def _is_unchanged(known: Mapping[str, Any], file: Path) -> bool:
    status = file.stat()
    if known.get("name") != file.name or known.get("size") != status.st_size:
        return False
    # A copied or touched file has another time and the same content; reading it is cheaper than redoing it.
    return known.get("mtime_ns") == status.st_mtime_ns or known.get("sha1") == sha1(file)


def sha1(file: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha1(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stored_cases(folder: Path) -> list[str]:
    """Every case of which any file lies in ``folder``, complete or not, sorted."""
    if not folder.is_dir():
        return []
    cases = set()
    for path in folder.iterdir():
        suffix = next((s for s in ("_seg.b2nd", ".b2nd", ".pkl", ".json") if path.name.endswith(s)), None)
        if suffix and path.is_file() and not path.name.startswith(".") and path.name != PLANES_FILE:
            cases.add(path.name[: -len(suffix)])
    return sorted(cases)


def complete_cases(folder: Path) -> list[str]:
    """The cases that may be used, sorted."""
    return [case for case in stored_cases(folder) if read_record(folder, case) is not None]


def remove_case(folder: Path, case: str) -> bool:
    """Remove all files of a case, the record first; True when there was any."""
    paths = [folder / (case + suffix) for suffix in (".json", *SUFFIXES)]
    existed = [path.exists() for path in paths]
    for path in paths:
        path.unlink(missing_ok=True)
    return any(existed)
