"""The one stock function that is wrapped: what ``-pretrained_weights`` calls.

Stock 2.8.1 loads the file by unpickling it, without ``map_location`` (a GPU checkpoint fails on a machine without
one), and ends a mismatch in an AssertionError that prints a whole tensor. No trainer hook lies in between, so the
function is wrapped where the command looks it up, in processes that use one of our trainers: the file is first read
safely and compared; what then loads it is the stock function.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run import run_training as stock
from torch import nn

from ctnet_nnunet import ranks
from ctnet_nnunet.checkpoints import HEADS, KeyDifference, compare_weights, read_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.trainers.user_errors import reports_user_errors

SHOWN_DIFFERENCES = 12


def install() -> None:
    """Wrap the stock function, once."""
    original = stock.load_pretrained_weights
    if not getattr(original, "checks_first", False):
        stock.load_pretrained_weights = checked(original)


def checked(original: Any) -> Any:
    """``load_pretrained_weights(network, fname, verbose)`` that reads safely and refuses with a table."""

    @reports_user_errors
    @functools.wraps(original)
    def load_pretrained_weights(network: nn.Module, fname: str, verbose: bool = False) -> None:
        checkpoint = read_checkpoint(Path(fname))
        weights = checkpoint["network_weights"]
        # Some trainers know more than shapes about what fits.
        getattr(unwrapped(network), "refuse_other", lambda file, content: None)(fname, checkpoint)
        wanted = unwrapped(network).state_dict()
        missing_or_other = [item for item in compare_weights(wanted, weights) if item.wanted is not None]
        if missing_or_other:
            print(difference_table(missing_or_other))
            count = f"{len(missing_or_other)} of {len(wanted)}"
            raise CheckpointError(
                f"{fname}: {count} tensors do not fit this plan's network (table above); "
                "pretrain with the same -d, -p and configuration, or plan again"
            )
        if ranks.in_group():  # the stock function would take the rank over all machines for the number of a GPU
            kept = {key: value for key, value in weights.items() if key in wanted and HEADS not in key}
            unwrapped(network).load_state_dict({**wanted, **kept})
        else:
            _hand_over(weights, original, network)
        unwrapped(network).pretrained_from = fname  # type: ignore[assignment] # for trainers whose teacher follows
        loaded = sum(HEADS not in key for key in wanted)
        print(f"pretrained weights: {loaded} tensors from {fname}; {len(wanted) - loaded} of the heads stay new")

    load_pretrained_weights.checks_first = True  # type: ignore[attr-defined]
    return load_pretrained_weights


def _hand_over(weights: Any, original: Any, network: nn.Module) -> None:
    """As a file of tensors alone, because the stock function would unpickle the original."""
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "network_weights.pth"
        torch.save({"network_weights": weights}, clean)
        original(network, str(clean), verbose=False)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and torch.compile wrappers."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    return getattr(network, "_orig_mod", network)


def difference_table(differences: list[KeyDifference]) -> str:
    """Wanted, found and why, one line a key; the first dozen, then a count."""
    rows = [("key", "wanted", "found", "action")]
    for item in differences[:SHOWN_DIFFERENCES]:
        rows.append((item.key, _shape(item.wanted), _shape(item.found), item.action))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(differences) > SHOWN_DIFFERENCES:
        lines.append(f"… and {len(differences) - SHOWN_DIFFERENCES} more")
    return "\n".join(lines)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"


def end_workers(*loaders: Any) -> None:
    """End the processes that load data, where a loader has any; stock ends them behind a whole training alone."""
    for loader in loaders:
        finish = getattr(loader, "finish", None) or getattr(loader, "_finish", None)
        if finish is not None:
            finish()
