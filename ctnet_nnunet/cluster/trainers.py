"""Trainers by their names: whether there is one, its mode, and whether several processes can share its batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.planning.options import Schedule, read_options
from ctnet_nnunet.shares import require_shares
from ctnet_nnunet.shim_path import trainer_names


def require_trainer(name: str, option: str) -> None:
    """Ours are known without an import, which takes seconds.

    Raises:
        SetupError: There is no such trainer.
    """
    if name in trainer_names():
        return
    try:
        find_trainer(name)
    except RuntimeError:
        raise SetupError(f"{option} {name}: no such trainer; ours are {', '.join(trainer_names())}") from None


def find_trainer(name: str) -> Any:
    """The trainer's class, as nnU-Net looks it up, without its words on where it looks.

    Raises:
        RuntimeError: There is none.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with redirect_stdout(StringIO()):
        return recursive_find_trainer_class_by_name(name)


def schedule_of(trainer: str, block: Mapping[str, Any]) -> Schedule | None:
    """The schedule of a trainer's mode; None for those of others, which do not read the plan's ``ctnet`` block.

    Args:
        block: The plan's configuration.
    """
    mode = getattr(find_trainer(trainer), "mode", None)
    return None if mode is None else read_options(block.get("ctnet"), "plans").schedule(mode)


def require_divisible(
    trainer: str, configuration: str, block: Mapping[str, Any], processes: int, batch_per_rank: int | None
) -> None:
    """What the trainer itself would say when its processes start, said before a job waits for them.

    Raises:
        PlanError: Its batch cannot be divided among the processes.
    """
    found, schedule = find_trainer(trainer), schedule_of(trainer, block)
    batch = int((schedule and schedule.batch_size) or block["batch_size"])
    if getattr(found, "mode", None) == "semi_supervised":
        batch = read_options(block.get("ctnet"), "plans").semi_supervised.batch_labelled or batch
    if batch_per_rank is not None:
        batch = batch_per_rank * processes
    joined = "its plan's batch_dice" if block.get("batch_dice") else None
    equal_for = trainer if getattr(found, "needs_equal_shares", False) else joined
    require_shares(configuration, batch, processes, equal_for)
