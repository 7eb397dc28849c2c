"""A model folder as nnU-Net's training leaves it, read without running anything of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.errors import CheckpointError, DataError
from ctnet_nnunet.files import sha256
from ctnet_nnunet.inference.checked_json import checked, read_json
from ctnet_nnunet.inference.contents import EXTRAS, Contents, checked_axes, checked_name, checked_weights

CHECKPOINT = "checkpoint_final.pth"


def read_folder(folder: Path, folds: Sequence[str] | None) -> Contents:
    """Read plans.json, dataset.json and the folds' final checkpoints; ``folds`` None takes all that are numbered.

    Raises:
        DataError, CheckpointError: If a file is missing, broken, or holds Python objects.
    """
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    names = _folds(folder, folds)
    files = [folder / f"fold_{name}" / CHECKPOINT for name in names]
    checkpoints = [read_checkpoint(file) for file in files]
    first, where = checkpoints[0], str(files[0])
    return Contents(
        where=f"{folder}/",
        plans=plans,
        dataset=dataset,
        configuration=_configuration_name(first, plans, where),
        trainer=checked_name(first.get("trainer_name", "unknown"), "trainer_name", where),
        mirror_axes=checked_axes(first.get("inference_allowed_mirroring_axes"), where),
        folds=names,
        names=tuple(str(file) for file in files),
        weights=[checked_weights(c["network_weights"], str(f)) for c, f in zip(checkpoints, files, strict=True)],
        hashes={f"fold_{name}/{CHECKPOINT}": sha256(file) for name, file in zip(names, files, strict=True)},
        extras={
            name: checked(kind, read_json(folder / name), str(folder / name), DataError).model_dump()
            for name, kind in EXTRAS.items()
            if (folder / name).is_file()
        },
    )


def _folds(folder: Path, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted:
        if odd := [name for name in wanted if not re.fullmatch(r"\w+", name)]:
            raise CheckpointError(f"-f {odd[0]!r}: is no fold; give numbers, or all")
        return tuple(dict.fromkeys(wanted))
    found = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{CHECKPOINT}"))
    # fold all saw every case; beside the cross-validation's folds it is no member of their ensemble.
    numbered = [name for name in found if name.isdigit()]
    if not found:
        raise CheckpointError(f"{folder}: no fold_*/{CHECKPOINT}; give a trained model's folder with -m")
    return tuple(numbered or found)


def _configuration_name(checkpoint: Mapping[str, Any], plans: Mapping[str, Any], file: str) -> str:
    arguments = checkpoint.get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    known = plans.get("configurations")
    if not isinstance(known, Mapping):
        raise DataError(f"{file}: the plans.json beside it has no configurations; take the model again")
    if checked_name(name, "configuration", file) not in known:
        raise CheckpointError(f"{file}: was trained with configuration {name!r}, which plans.json beside it lacks")
    return str(name)
