"""A model in one file: a zip archive of safetensors and JSON, read in place, with nothing unpacked, run or imported.

Every member is stored uncompressed, named in the manifest with its length and SHA-256, and of one of the names below.
docs/reference/bundle.md describes the format.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.inference.checked_json import MAX_JSON_BYTES, checked, parse_json
from ctnet_nnunet.inference.contents import EXTRAS, Contents

FORMAT = "ctnet_nnunet model bundle"
VERSION = 1
MANIFEST, MODEL, PLANS, DATASET = "manifest.json", "model.json", "plans.json", "dataset.json"
MAX_MEMBERS = 256
_WEIGHTS = re.compile(r"fold_(\w{1,32})\.safetensors")
ENGINE_FOLDER = "openvino/"
_ENGINE = re.compile(r"openvino/(fold_\w{1,32}\.(xml|bin)|engine\.json)")
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Member(_Strict):
    """What the manifest says of a member."""

    size: Annotated[int, Field(strict=True, ge=0)]
    sha256: _Sha256


class Manifest(_Strict):
    """``manifest.json``: every other member, and no more."""

    format: Literal["ctnet_nnunet model bundle"]
    version: Literal[1]
    members: Annotated[dict[_Name, Member], Field(max_length=MAX_MEMBERS)]


class Fold(_Strict):
    """A fold: ``shared`` names the tensors that are another one, which is stored once (nnU-Net's decoder holds the
    encoder)."""

    name: Annotated[str, Field(pattern=r"^\w{1,32}$")]
    shared: dict[_Name, _Name]


class Description(_Strict):
    """``model.json``: what a checkpoint says beside its weights."""

    configuration: _Name
    trainer: _Name
    mirror_axes: Annotated[list[Annotated[int, Field(strict=True, ge=0, le=2)]], Field(max_length=3)] | None
    folds: Annotated[list[Fold], Field(min_length=1, max_length=64)]


def read_bundle(file: Path, folds: Sequence[str] | None) -> Contents:
    """Read a bundle that ``ctnet export`` wrote; every member's hash is checked, also of those that are not used.

    Raises:
        CheckpointError, DataError: If it is no bundle, of a newer version, damaged, or holds what no bundle holds.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _read(archive, file, folds)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        # A RuntimeError is what zipfile says of an encrypted member.
        raise _refused(file, f"is no bundle of `ctnet export`, or damaged ({error})") from error


def read_engine_files(file: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The members of those names that ``--openvino`` adds, without their folder; empty where one is missing.

    Raises:
        CheckpointError: If they are damaged.
    """
    with zipfile.ZipFile(file) as archive:
        manifest = _manifest(archive, file)[0]
        members = {name: f"{ENGINE_FOLDER}{name}" for name in names}
        if not set(members.values()) <= set(manifest.members):
            return {}
        return {name: _member(archive, manifest, member, file) for name, member in members.items()}


def _read(archive: zipfile.ZipFile, file: Path, wanted: Sequence[str] | None) -> Contents:
    manifest, manifest_hash = _manifest(archive, file)
    described = _json(archive, manifest, MODEL, file)
    description = checked(Description, described, f"{file}: {MODEL}", CheckpointError)
    known = {fold.name: fold for fold in description.folds}
    if missing := [name for name in wanted or () if name not in known]:
        raise _refused(file, f"has no fold {missing[0]}; its folds are {', '.join(known)}")
    if {f"fold_{name}.safetensors" for name in known} != {
        name for name in manifest.members if _WEIGHTS.fullmatch(name)
    }:
        raise _refused(file, f"its folds are not those that {MODEL} names")
    chosen = list(dict.fromkeys(wanted)) if wanted else list(known)
    weights = []
    for name, fold in known.items():
        data = _member(archive, manifest, f"fold_{name}.safetensors", file)
        if name in chosen:
            weights.append((chosen.index(name), _tensors(data, fold.shared, file)))
    weights.sort(key=lambda item: item[0])
    for name in manifest.members:
        if _ENGINE.fullmatch(name):
            _member(archive, manifest, name, file)
    return Contents(
        where=f"{file}: ",
        plans=_json(archive, manifest, PLANS, file),
        dataset=_json(archive, manifest, DATASET, file),
        configuration=description.configuration,
        trainer=description.trainer,
        mirror_axes=tuple(description.mirror_axes) if description.mirror_axes else None,
        folds=tuple(chosen),
        names=tuple(f"{file}: fold_{name}.safetensors" for name in chosen),
        weights=[tensors for _, tensors in weights],
        hashes={MANIFEST: manifest_hash}
        | {f"fold_{name}.safetensors": manifest.members[f"fold_{name}.safetensors"].sha256 for name in chosen},
        extras={
            name: checked(kind, _json(archive, manifest, name, file), f"{file}: {name}").model_dump()
            for name, kind in EXTRAS.items()
            if name in manifest.members
        },
    )


def _manifest(archive: zipfile.ZipFile, file: Path) -> tuple[Manifest, str]:
    """The manifest, once the archive holds what it names and nothing else."""
    members = archive.infolist()
    _check_layout(members, file)
    if MANIFEST not in archive.namelist():
        raise _refused(
            file, f"is no bundle of `ctnet export`: it has no {MANIFEST}; unpack other archives, give the folder"
        )
    data = archive.read(MANIFEST)
    content = parse_json(data, f"{file}: {MANIFEST}")
    if content.get("format") == FORMAT and isinstance(content.get("version"), int) and content["version"] > VERSION:
        raise _refused(
            file, f"is of format version {content['version']}, this ctnet reads {VERSION}; update ctnet_nnunet"
        )
    manifest = checked(Manifest, content, f"{file}: {MANIFEST}", CheckpointError)
    present = {member.filename for member in members} - {MANIFEST}
    if missing := sorted(set(manifest.members) - present):
        raise _refused(file, f"lacks {missing[0]}, which its manifest names")
    if extra := sorted(present - set(manifest.members)):
        raise _refused(file, f"holds {extra[0][:80]!r}, which its manifest does not name")
    return manifest, hashlib.sha256(data).hexdigest()


def _check_layout(members: Sequence[zipfile.ZipInfo], file: Path) -> None:
    """Names, kinds and lengths of the members, before any is read."""
    if len(members) > MAX_MEMBERS:
        raise _refused(file, f"holds {len(members)} members, more than {MAX_MEMBERS}")
    names = [member.filename for member in members]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise _refused(file, f"holds {twice[:80]!r} twice")
    for member in members:
        name, mode = member.filename, member.external_attr >> 16
        if name not in (MANIFEST, MODEL, PLANS, DATASET, *EXTRAS) and not (
            _WEIGHTS.fullmatch(name) or _ENGINE.fullmatch(name)
        ):
            raise _refused(file, f"holds {name[:80]!r}, which is no part of a bundle")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _refused(file, f"{name}: is a link or a device, not a file")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _refused(file, f"{name}: is compressed or encrypted, which no bundle is")
        if name.endswith(".json") and member.file_size > MAX_JSON_BYTES:
            raise _refused(file, f"{name}: is larger than {MAX_JSON_BYTES >> 20} MB")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise _refused(file, "promises more bytes than the file has")


def _member(archive: zipfile.ZipFile, manifest: Manifest, name: str, file: Path) -> bytes:
    expected = manifest.members.get(name)
    if expected is None:
        raise _refused(file, f"lacks {name}")
    data = archive.read(name)
    if len(data) != expected.size or hashlib.sha256(data).hexdigest() != expected.sha256:
        raise _refused(file, f"{name}: is not what the manifest says (its SHA-256 differs); copy the bundle again")
    return data


def _json(archive: zipfile.ZipFile, manifest: Manifest, name: str, file: Path) -> dict[str, Any]:
    return parse_json(_member(archive, manifest, name, file), f"{file}: {name}")


def _tensors(data: bytes, shared: Mapping[str, str], file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_tensors(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _refused(file, f"its weights are no safetensors ({error})") from error
    if odd := next((name for name, stored in shared.items() if name in tensors or stored not in tensors), None):
        raise _refused(file, f"{MODEL}: the shared tensor {odd[:80]!r} is stored too, or has no other")
    return tensors | {name: tensors[stored] for name, stored in shared.items()}


def _refused(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: {reason}")
