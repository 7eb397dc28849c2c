"""Which checkpoint a training goes on from: with ``--c``, and when torchrun has started its processes anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnunetv2.run import run_training as stock

from ctnet_nnunet import ranks
from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.train.arguments import Arguments
from ctnet_nnunet.train.group import Launch
from ctnet_nnunet.trainers.checkpointing import CHECKPOINTS


def load(trainer: Any, arguments: Arguments, launch: Launch, ahead: float) -> None:
    """Load what the training goes on from or begins with; all ranks load the same file.

    Under torchrun a training goes on, without ``--c``, too, from what its own processes had written before they were
    started anew.

    Args:
        trainer: An nnUNetTrainer.
        arguments: Of the command.
        launch: Of this process.
        ahead: Seconds that the clock of the results' file system is ahead of rank 0's.

    Raises:
        CheckpointError: ``--c`` without a checkpoint, or ``--val`` without a final one.
    """
    if arguments.validate_only:
        trainer.load_checkpoint(str(_final_of(trainer)))
        return
    file = _to_go_on_from(Path(trainer.output_folder), arguments, launch, ahead)
    if restarts := max(ranks.gathered_objects(launch.restarts)):
        how = "no checkpoint of this training yet, so it begins anew" if file is None else f"going on from {file}"
        trainer.print_to_log_file(f"restart {restarts} by torchrun: {how}")
    trainer.resuming = file is not None
    if file is not None:
        trainer.load_checkpoint(str(file))
    elif arguments.go_on:
        raise CheckpointError(
            f"--c: {trainer.output_folder} holds no checkpoint to continue from; check the fold and -p, or start "
            "without --c"
        )
    elif arguments.pretrained_weights is not None:
        trainer.initialize()
        stock.load_pretrained_weights(trainer.network, arguments.pretrained_weights, verbose=True)


def _to_go_on_from(folder: Path, arguments: Arguments, launch: Launch, ahead: float) -> Path | None:
    """The same on all ranks."""
    since = None
    if not arguments.go_on:
        if not launch.by_torchrun:
            return None
        began = [time for time in ranks.gathered_objects(launcher_started()) if time is not None]
        if not began and not launch.restarts:
            return None
        since = min(began) + ahead if began else None
    file: Path | None = ranks.from_first(last_intact(folder, since) if launch.rank == 0 else None)
    return file


def _final_of(trainer: Any) -> Path:
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    if not file.is_file():
        raise CheckpointError(f"--val: {file} does not exist: the training is not finished; go on with --c")
    return file


def last_intact(folder: Path, since: float | None = None) -> Path | None:
    """The first of final, latest and best that can be read; one that cannot is named.

    Args:
        folder: Of the fold.
        since: Leave out what was written before that time, in seconds since 1970.
    """
    for file in (folder / name for name in CHECKPOINTS):
        if not file.is_file() or (since is not None and file.stat().st_mtime < since):
            continue
        try:
            read_checkpoint(file)
        except CheckpointError as error:
            print(f"left out: {error}", flush=True)
            continue
        return file
    return None


def launcher_started() -> float | None:
    """When the process that started this one began, in seconds since 1970; None where /proc does not say.

    Under torchrun that is its agent, which lives through restarts. So a checkpoint that is younger is of this training,
    and one that is older is of an earlier one, which a process that was killed had not come to set aside.
    """
    try:
        fields = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        booted = next(
            int(line.split()[1])
            for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines()
            if line.startswith("btime ")
        )
    except (OSError, StopIteration):
        return None
    return booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
