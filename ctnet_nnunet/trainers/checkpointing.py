"""Checkpoints of a running training: written by the clock, read safely, complete enough to go on within an epoch.

They hold what stock nnU-Net's hold, under its keys, and under a key of our own the losses of the running epoch, the
state of the random generators and what a trainer adds. See docs/reference/checkpoints.md.
"""

from __future__ import annotations

import functools
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from ctnet_nnunet.checkpoints import random_state, read_checkpoint, restore_random_state, write_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.planning.options import Schedule
from ctnet_nnunet.trainers import stock_hooks
from ctnet_nnunet.trainers.schedule import optimizer_misfit
from ctnet_nnunet.trainers.several_processes import SeveralProcesses
from ctnet_nnunet.trainers.user_errors import reports_user_errors

OWN_KEY = "ctnet"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


class CheckpointingTrainer(SeveralProcesses):
    """The saving and loading of a trainer; :class:`~ctnet_nnunet.trainers.resilient.ResilientTrainer` runs it."""

    resuming: bool
    schedule: Schedule
    _epoch_outputs: list[dict[str, Any]]
    _non_finite_total: int
    _saved_at: float
    _random_state: dict[str, Any] | None = None
    """Before the running epoch's validation, which is done again when it is cut off; None in training."""

    def refuse_impossible_resume(self) -> None:
        """Raise CheckpointError for ``--c`` without a checkpoint, where stock would start anew."""
        if self.resuming and not any((Path(self.output_folder) / name).is_file() for name in CHECKPOINTS):
            raise CheckpointError(
                f"--c: {self.output_folder} holds no checkpoint to continue from; check the fold and -p, or start "
                "without --c"
            )

    def _save_by_the_clock(self) -> None:
        if time.monotonic() - self._saved_at >= 60 * self.schedule.save_minutes:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))

    def _set_old_training_aside(self) -> None:
        """A new training in the folder of an old one moves its checkpoints, so that neither is lost nor mixed up."""
        old = [Path(self.output_folder) / name for name in CHECKPOINTS]
        old = [file for file in old if file.is_file()]
        if self.resuming or not old or self.local_rank != 0 or self.disable_checkpointing:
            return
        target = Path(self.output_folder) / f"previous_{datetime.now():%Y%m%d_%H%M%S}"
        target.mkdir()
        for file in old:
            file.rename(target / file.name)
        self.print_to_log_file(f"an older training's checkpoints were moved to {target}")

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that stock nnU-Net reads, atomically, of CPU tensors and plain types."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        # Behind an epoch stock counts it as done. Before that it is still to do: behind its last step, too, because its
        # validation and its log entries are missing.
        done = Path(filename).name == "checkpoint_final.pth" or self._epoch_closing()
        write_checkpoint(self._checkpoint(self.current_epoch + (1 if done else 0)), Path(filename))
        if Path(filename).name == "checkpoint_latest.pth":
            self._saved_at = time.monotonic()

    def _epoch_closing(self) -> bool:
        """Whether stock's ``on_epoch_end`` is saving: the epoch is logged as ended, but not yet counted."""
        return len(self.logger.get_value("epoch_end_timestamps", None)) > self.current_epoch

    def _checkpoint(self, next_epoch: int) -> dict[str, Any]:
        logging = {key: values[:next_epoch] for key, values in self.logger.get_checkpoint().items()}
        return {
            "network_weights": self.transferable_network().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": logging,
            "_best_ema": self._best_ema,
            "current_epoch": next_epoch,
            "init_args": self.my_init_kwargs,
            "trainer_name": self.__class__.__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            OWN_KEY: {
                "epoch_outputs": self._epoch_outputs if next_epoch == self.current_epoch else [],
                "random_state": self._random_state or random_state(),
                "non_finite_total": self._non_finite_total,
                **self.extra_state(),
            },
        }

    def transferable_network(self) -> nn.Module:
        """The network whose weights other trainers load."""
        return stock_hooks.unwrapped(self.network)

    def extra_state(self) -> dict[str, Any]:
        """State beyond the network and the optimiser, kept under a key of our own."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`extra_state` gave."""

    @reports_user_errors
    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Continue from a checkpoint: network, optimiser, schedule, log, random generators, place in the epoch."""
        if not self.was_initialized:
            self.initialize()
        source = filename_or_checkpoint
        checkpoint = read_checkpoint(Path(source)) if isinstance(source, str) else source
        network = self.transferable_network()
        try:
            network.load_state_dict(checkpoint["network_weights"])
        except RuntimeError:
            differences = stock_hooks.compare_weights(network.state_dict(), checkpoint["network_weights"])
            print(stock_hooks.difference_table(differences))
            raise CheckpointError(
                f"{source}: written with another plan (table above); continue with the plans it was trained with"
            ) from None
        misfit = optimizer_misfit(self.optimizer, checkpoint["optimizer_state"])
        if misfit and self.resuming:
            raise CheckpointError(f"{source}: {misfit}; set it back, or train anew")
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        if not misfit:  # else it is a validation, in which nothing learns any more
            self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        own = checkpoint.get(OWN_KEY, {})
        self._epoch_outputs = [dict(output) for output in own.get("epoch_outputs", [])]
        self._non_finite_total = own.get("non_finite_total", 0)
        self.load_extra_state(own)
        if "random_state" in own:
            # Behind the making of the data loaders, which draws, so that a resumed run goes on where it stood.
            self._after_train_start = functools.partial(self._go_on_drawing, own["random_state"])

    def _go_on_drawing(self, state: dict[str, Any]) -> None:
        """The checkpoint holds rank 0's generators; the other ranks must not draw the same as it does."""
        if self.local_rank == 0:
            restore_random_state(state)
        else:
            self.seed_everything(self.current_epoch * self.num_iterations_per_epoch + len(self._epoch_outputs))

    def seed_everything(self, steps: int = 0) -> None:
        """Seed the global generators for a training of which ``steps`` are done."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        super().on_train_start()
        restore = getattr(self, "_after_train_start", None)
        if restore is not None:
            restore()
