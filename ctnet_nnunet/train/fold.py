"""The files that a training reads, and the trainer that stock nnU-Net makes of them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctnet_nnunet import ranks
from ctnet_nnunet.errors import CTNetError, DataError, PlanError, SetupError
from ctnet_nnunet.train.agreement import check_agreement
from ctnet_nnunet.train.arguments import Arguments
from ctnet_nnunet.train.group import Launch
from ctnet_nnunet.trainers.several_processes import SeveralProcesses


class Fold:
    """A fold of a dataset under plans.

    Raises:
        SetupError: nnU-Net's folders are not set.
        DataError: There is no such dataset.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        if not nnUNet_preprocessed.is_set() or not nnUNet_results.is_set():
            raise SetupError(
                "nnUNet_preprocessed and nnUNet_results must be set; export them (`ctnet doctor` shows all three "
                "folders)"
            )
        self.base = Path(str(nnUNet_preprocessed)) / _dataset_name(arguments.dataset)
        self.plans_file = self.base / f"{arguments.plans}.json"
        self.dataset_file = self.base / "dataset.json"
        self.splits_file = self.base / "splits_final.json"

    def check_agreement(self) -> float:
        """See :func:`~ctnet_nnunet.train.agreement.check_agreement`."""
        files = [self.plans_file, self.dataset_file, self.splits_file, self.base / "semi_split.json"]
        folders = []
        with suppress(CTNetError, KeyError, RuntimeError):  # what is wrong with a plan is said by the trainer
            manager = PlansManager(self._read(self.plans_file))
            folder = self.base / manager.get_configuration(self.arguments.configuration).data_identifier
            folders = [folder, folder.with_name(f"{folder.name}_unlabeled")]
        return check_agreement(files, folders, Path(str(nnUNet_results)))

    def trainer(self, trainer_class: type[SeveralProcesses], device: torch.device) -> SeveralProcesses:
        """Construct the trainer as stock does.

        Raises:
            PlanError: Plans or dataset.json cannot be read, or lack the configuration.
        """
        if ranks.rank():
            os.environ["nnUNet_wandb_enabled"] = "0"  # noqa: SIM112  (nnU-Net's spelling): a run is logged once
        plans = {**self._read(self.plans_file), "continue_training": self.arguments.go_on}
        configuration = self.arguments.configuration
        if configuration not in plans.get("configurations", {}):
            there = ", ".join(plans.get("configurations", {}))
            raise PlanError(f"{self.plans_file}: no configuration {configuration!r}; it has {there}")
        return trainer_class(
            plans=plans,
            configuration=configuration,
            fold=self.arguments.fold,  # type: ignore[arg-type] # or "all"
            dataset_json=self._read(self.dataset_file),
            device=device,
        )

    def settle_splits(self, trainer: SeveralProcesses, launch: Launch) -> None:
        """Let one process write splits_final.json before others look for it; where data are not shared, one a machine.

        All ranks call this.
        """
        for writes in (launch.rank == 0, launch.local_rank == 0):
            if writes and trainer.fold != "all" and not self.splits_file.is_file():
                with suppress(CTNetError):  # some trainers need no split; the others say what is wrong
                    trainer.do_split()
            ranks.gathered_objects(None)

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise PlanError(
                f"{file}: cannot be read; plan and preprocess dataset {self.arguments.dataset} first, or check -p"
            ) from None
        return content


def _dataset_name(name_or_id: str) -> str:
    try:
        name: str = maybe_convert_to_dataset_name(name_or_id if name_or_id.startswith("Dataset") else int(name_or_id))
    except (ValueError, RuntimeError):
        raise DataError(f"dataset {name_or_id}: neither number nor name of a dataset in nnU-Net's folders") from None
    return name
