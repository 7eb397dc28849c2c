"""Write a bundle: the same model gives the same bytes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ctnet_nnunet.errors import CheckpointError, SetupError
from ctnet_nnunet.inference.bundle import DATASET, ENGINE_FOLDER, FORMAT, MANIFEST, MODEL, PLANS, VERSION
from ctnet_nnunet.inference.model import Model, load_model
from ctnet_nnunet.inference.synthesis import STAGE_ONE

_NO_DATE = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16


def export_model(
    source: Path, target: Path, folds: Sequence[str] | None = None, force: bool = False, openvino: bool = False
) -> Model:
    """Read a model as ``ctnet predict`` does and write it as one file, which appears whole or not at all.

    With ``openvino`` the networks are added as OpenVINO's files too.

    Raises:
        CheckpointError: If ``target`` exists (without ``force``) or cannot be written.
        DataError, PlanError, CheckpointError: If the model cannot be read.
    """
    if target.is_dir() or (target.exists() and not force):
        raise CheckpointError(f"{target}: exists already; choose another -o, or --force")
    model = load_model(source, folds)
    if model.trainer == STAGE_ONE:
        raise CheckpointError(f"{source}: {STAGE_ONE} segments nothing; export the nnUNetTrainerCMFF behind it")
    added = _engine_files(model) if openvino else {}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            _write(stream, chain(_members(model), added.items()))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{target}: could not be written ({error.strerror or error}); free disk space or choose another -o"
        ) from error
    return model


def _members(model: Model) -> Iterator[tuple[str, bytes]]:
    stored = [_stored_once(weights) for weights in model.weights]
    description = {
        "configuration": model.configuration_name,
        "trainer": model.trainer,
        "mirror_axes": list(model.mirror_axes) if model.mirror_axes else None,
        "folds": [{"name": name, "shared": shared} for name, (_, shared) in zip(model.folds, stored, strict=True)],
    }
    yield MODEL, _json(description)
    yield PLANS, _json(model.plans.plans)
    yield DATASET, _json(model.dataset_json)
    for name, content in sorted(model.extras.items()):
        yield name, _json(content)
    for name, (tensors, _) in zip(model.folds, stored, strict=True):
        yield f"fold_{name}.safetensors", save(tensors)


def _engine_files(model: Model) -> dict[str, bytes]:
    if importlib.util.find_spec("openvino") is None:
        raise SetupError("--openvino: not installed; run `pip install 'ctnet_nnunet[cpu]'`, or leave it out")
    from ctnet_nnunet.inference.engine_files import engine_files

    return {f"{ENGINE_FOLDER}{name}": data for name, data in engine_files(model).items()}


def _write(stream: Any, members: Iterable[tuple[str, bytes]]) -> None:
    """One member in memory at a time; the manifest, which needs all their hashes, comes last."""
    listed = {}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(_plain_member(name), data)
            listed[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {"format": FORMAT, "version": VERSION, "members": listed}
        archive.writestr(_plain_member(MANIFEST), _json(manifest))


def _plain_member(name: str) -> zipfile.ZipInfo:
    """Without the date and the system of the one who writes."""
    member = zipfile.ZipInfo(name, _NO_DATE)
    member.create_system, member.external_attr = 3, _PLAIN_FILE
    return member


def _stored_once(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that lie at one place of memory are stored under their first name; returns them and the other names."""
    first: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    shared = {}
    for name in sorted(weights):
        tensor = weights[name]
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in first:
            shared[name] = first[place]
            continue
        first[place] = name
        # safetensors refuses tensors that lie in a part of others' memory.
        tensors[name] = tensor.contiguous().clone()
    return tensors, shared


def _json(content: Any) -> bytes:
    # Keys keep their order: that of the labels is the order of a region-based network's outputs.
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
