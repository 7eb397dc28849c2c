"""What stock nnU-Net's trainer must do otherwise where several processes train, on one machine or on several.

Stock takes the rank over all machines for the number of a GPU, writes from every rank, and validates between barriers
that time out. Our trainers inherit from here; the trainers of others are given it by
:mod:`ctnet_nnunet.train.run`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctnet_nnunet import ranks
from ctnet_nnunet.shares import require_shares
from ctnet_nnunet.trainers.ddp import rank_device, stock_wraps_for
from ctnet_nnunet.trainers.sharded_validation import validate_in_shares


class SeveralProcesses(nnUNetTrainer):  # type: ignore[misc]
    """A trainer whose ranks have a device, a batch and a share of the validation cases each.

    ``local_rank`` is, as in stock, the rank over all machines.

    Attributes:
        batch_per_rank: Samples of each rank, in place of the plan's batch divided among them.
        processes: Of the group; stock writes it into debug.json with what else a trainer is.
        batch_share: By what a rank's mean loss is multiplied, so that each sample weighs the same.
    """

    output_folder_base: str
    output_folder: str
    batch_per_rank: int | None = None
    processes: int = 1
    batch_share: float = 1.0
    needs_equal_shares: ClassVar[bool] = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (the base class's signature, verbatim)
    ) -> None:
        with warnings.catch_warnings():  # where there is no GPU, of the scaler that is dropped below
            warnings.filterwarnings("ignore", "torch.cuda.amp.GradScaler is enabled")
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.processes = ranks.world_size()
        if self.is_ddp:  # stock's constructor has taken cuda:<rank> whatever it was given
            self.device = rank_device(device)
            if self.device.type != "cuda":
                self.grad_scaler = None

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Rank 0 alone; stock prints what each rank says."""
        if self.local_rank == 0:
            super().print_to_log_file(*args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    def initialize(self) -> None:
        with stock_wraps_for(self.device):
            super().initialize()

    def _set_batch_size_and_oversample(self) -> None:
        """Stock's division of the plan's batch, with its conditions said in a line.

        Raises:
            PlanError: Fewer samples than ranks, or shares that differ where a loss needs equal ones.
        """
        world, configuration = ranks.world_size(), self.configuration_manager.configuration
        if self.batch_per_rank is not None:
            configuration["batch_size"] = self.batch_per_rank * world
        batch = self.configuration_manager.batch_size
        joined = "its plan's batch_dice" if self.configuration_manager.batch_dice else None
        equal_for = self.__class__.__name__ if self.needs_equal_shares else joined
        require_shares(self.configuration_name, batch, world, equal_for)
        super()._set_batch_size_and_oversample()
        self.batch_share = self.batch_size * world / batch

    def on_train_start(self) -> None:
        with self._writing_nowhere() if self.local_rank else nullcontext():
            super().on_train_start()

    @contextmanager
    def _writing_nowhere(self) -> Iterator[None]:
        """Stock's start writes plans and pictures from every rank; rank 0's are enough."""
        folders = self.output_folder_base, self.output_folder
        with TemporaryDirectory() as nowhere:
            self.output_folder_base = self.output_folder = nowhere
            try:
                yield
            finally:
                self.output_folder_base, self.output_folder = folders

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        validate = super().perform_actual_validation
        if self.is_ddp:
            validate_in_shares(self, lambda: validate(save_probabilities))
        else:
            validate(save_probabilities)
