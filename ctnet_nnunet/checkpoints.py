"""Checkpoints that survive: written atomically, of tensors and plain types only, read without unpickling code.

A file is written under a temporary name in the same folder, flushed to disk, and renamed, so a kill at any moment
leaves the old file or the new one. It loads with ``weights_only=True``; stock nnU-Net reads it as its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctnet_nnunet.checkpoint_scan import scan_checkpoint
from ctnet_nnunet.errors import CheckpointError

HEADS = ".seg_layers."
"""Keys with this substring are segmentation heads: stock ``-pretrained_weights`` leaves them out."""


def plain(value: Any, moved: dict[Any, Tensor] | None = None) -> Any:
    """Tensors on the CPU and plain types: numpy and other scalars become Python's, the rest its text.

    Containers keep their kind (tuples stay tuples), so optimiser states load as they were. Tensors that are one on the
    device stay one (``moved`` remembers them): a state dict names nnU-Net's encoder twice, its convolutions four times.
    """
    moved = {} if moved is None else moved
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach()
        same = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if same not in moved:
            moved[same] = value.detach().cpu()
        return moved[same]
    if value is None or (isinstance(value, (bool, int, float, str)) and type(value).__module__ == "builtins"):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {plain(key): plain(item, moved) for key, item in value.items()}
    if isinstance(value, (list, set)):
        return [plain(item, moved) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item, moved) for item in value)
    return str(value)


GO_ON = "free disk space or fix the folder's rights, then continue with --c: the checkpoint before it is intact"


def write_checkpoint(checkpoint: Mapping[str, Any], file: Path, remedy: str = GO_ON) -> None:
    """Write atomically; what lay under that name stays until the new file is whole on disk.

    Args:
        checkpoint: What to write.
        file: Where.
        remedy: What to tell the user if it cannot be written.

    Raises:
        CheckpointError: If it cannot be written (a full disk, say); nothing is left half-written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            torch.save(plain(checkpoint), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        _sync_folder(file.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file}: could not be written ({reason}); {remedy}") from error


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left of checkpoints that they were writing."""
    for file in folder.glob(".checkpoint_*.partial"):
        file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of stock nnU-Net onto the CPU, without running code that it may carry.

    Raises:
        CheckpointError: If it is missing, truncated, or holds more than tensors and plain types.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint; check the path, or train the fold that should write it")
    scan_checkpoint(file)
    try:
        with torch.serialization.safe_globals(_numpy_scalar_types()):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here: pickle, zip, runtime, end of file
        reason = "it holds Python objects" if "Unsupported" in str(error) or "Weights only" in str(error) else "broken"
        remedy = "take another, or train it again"
        raise CheckpointError(f"{file}: cannot be read as a checkpoint ({reason}); {remedy}") from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise CheckpointError(f"{file}: holds no network_weights, so it is not nnU-Net's; give a checkpoint_*.pth")
    return checkpoint


def checked_weights(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """The ``network_weights`` of a checkpoint from :func:`read_checkpoint`.

    Raises:
        CheckpointError: If they are not names with tensors of finite numbers.
    """
    weights = checkpoint["network_weights"]
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{file}: its network_weights are no table of tensors; give a checkpoint_*.pth")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file}: its network_weights hold {str(key)[:60]!r}, which is no name with a tensor; give a "
                "checkpoint_*.pth"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{file}: {key} holds numbers that are not finite; that training failed, take an earlier checkpoint"
            )
    return dict(weights)


def _numpy_scalar_types() -> list[Any]:
    """What stock checkpoints need beyond plain types: numpy's scalars (losses, Dice) and dtypes.

    Under both names of their module, which numpy 2 changed: published models were saved with either.
    """
    multiarray = getattr(np, "_core", None) or np.core
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")]
    functions = (multiarray.multiarray.scalar, multiarray.multiarray._reconstruct)
    named = [
        (function, f"numpy.{module}.multiarray.{function.__name__}")
        for function in functions
        for module in ("core", "_core")
    ]
    return [*named, np.dtype, np.ndarray, *kinds]


@dataclass(frozen=True)
class KeyDifference:
    """One key of a comparison: the wanted and found shapes (None: absent) and what to do about it."""

    key: str
    wanted: tuple[int, ...] | None
    found: tuple[int, ...] | None

    @property
    def action(self) -> str:
        if self.wanted is None:
            return "not in this network"
        return "missing in the file" if self.found is None else "shape differs"


def compare_weights(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[KeyDifference]:
    """Keys that keep a file from loading with ``-pretrained_weights``; segmentation heads don't count."""
    differences = []
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        mine = tuple(wanted[key].shape) if key in wanted else None
        theirs = tuple(found[key].shape) if key in found else None
        if mine != theirs and HEADS not in key:
            differences.append(KeyDifference(key, mine, theirs))
    return differences


def random_state() -> dict[str, Any]:
    """State of the global generators of torch (CPU and every CUDA device), numpy and Python, as plain types."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (str(name), torch.tensor(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(cached)),
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to a state from :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
