"""``-tr nnUNetTrainerCTNet``: supervised training of CTNet, from any plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from ctnet_nnunet.architectures.from_plan import CTNET_CLASS_NAME, as_ctnet, network_from_plan
from ctnet_nnunet.errors import DataError, PlanError
from ctnet_nnunet.laterality import sided_labels
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.trainers.data_check import LABELLED, Cases, Remedy, check_batch, check_cases, highest_label
from ctnet_nnunet.trainers.lateral_mirroring import (
    MirrorPlan,
    direction_of,
    plan_mirroring,
    with_lateral_mirroring,
)
from ctnet_nnunet.trainers.reference import keep_reference
from ctnet_nnunet.trainers.resilient import ResilientTrainer
from ctnet_nnunet.trainers.unlabeled_scans import preprocess_command
from ctnet_nnunet.trainers.user_errors import reports_user_errors
from ctnet_nnunet.unlabeled.dataset import PooledDataset

FOLDS = 5


class nnUNetTrainerCTNet(ResilientTrainer):
    """nnU-Net's loss, sampling and augmentation; CTNet, AdamW with warm-up, safe mirroring, safe checkpoints.

    A U-Net plan (nnUNetPlans, ResEnc) is translated to CTNet; a CTNet plan is taken as it is.
    """

    needs_labelled_cases: ClassVar[bool] = True

    @staticmethod
    @reports_user_errors
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        configuration = configuration_manager.configuration
        options = read_options(configuration.get("ctnet"), f"plans {plans_manager.plans['plans_name']}")
        transformer = options.transformer_options()
        architecture = as_ctnet(configuration["architecture"], configuration["patch_size"], transformer)
        _refuse_stale(configuration, transformer)
        return network_from_plan(architecture, num_input_channels, num_output_channels, enable_deep_supervision)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        train, validation = super().get_tr_and_val_datasets()
        self.highest_label = highest_label(self.label_manager)
        self.check_cases(train)
        if set(validation.identifiers) - set(train.identifiers):
            self.check_cases(validation)
        return train, validation

    def check_cases(self, dataset: Cases) -> None:
        """Refuse cases that cannot be learned from, before the first step."""
        channels = self.dataset_json.get("channel_names", self.dataset_json.get("modality", {}))
        unlabelled = set(dataset.unlabeled_identifiers) if isinstance(dataset, PooledDataset) else set()
        of_images_un = Remedy("imagesUn", f"run {preprocess_command(self)}")
        check_cases(
            dataset,
            len(channels),
            f"{self.plans_manager.plans_name}, {self.configuration_name}",
            lambda case: of_images_un if case in unlabelled else LABELLED,
        )

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        check_batch(batch["data"], batch["target"], batch["keys"], self.highest_label)
        data = batch["data"].to(self.device, non_blocking=True)
        target = to_device(batch["target"], self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.training_output(data), target)
        return {"loss": self.optimise(loss)}

    def training_output(self, images: Tensor) -> Tensor | list[Tensor]:
        """What the loss of a training step reads."""
        output: Tensor | list[Tensor] = self.network(images)
        return output

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        # Stock opens an autocast on CUDA only, without naming a type, so it takes over the type of this one.
        with self.autocast():
            output: dict[str, Any] = super().validation_step(batch)
        return output

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        rotation, dummy_2d, initial_patch_size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        self.mirroring = self._plan_mirroring(axes)
        if self.mirroring.reason:
            self.print_to_log_file(self.mirroring.reason)
        # None and not (): the stock predictor takes the maximum of what is no None.
        self.inference_allowed_mirroring_axes = self.mirroring.plain_axes or None
        return rotation, dummy_2d, initial_patch_size, self.mirroring.plain_axes

    def _structures(self) -> dict[str, Any]:
        labels = self.dataset_json["labels"].items()
        return {name: value for name, value in labels if name not in ("background", "ignore")}

    def _plan_mirroring(self, axes: Sequence[int]) -> MirrorPlan:
        labels = self._structures()
        return plan_mirroring(
            axes,
            len(self.configuration_manager.patch_size),
            sided_labels(labels),
            self.plans_manager.transpose_forward,
            self._training_directions,
        )

    def _training_directions(self) -> Iterable[Sequence[float] | None]:
        keys, _ = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(keys))
        for key in dataset.identifiers:
            yield direction_of(dataset.load_case(key)[3])

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """Stock's, with the mirror that swaps sides where it belongs."""
        transforms = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        if self.mirroring.swap_axis is None:
            return transforms
        labels = self._structures()
        return with_lateral_mirroring(transforms, self.mirroring.swap_axis, sided_labels(labels).pairs)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Stock's split, with an error instead of a stack of them when a fold is empty or names an unknown case."""
        self._require_preprocessed()
        if self.dataset_class is None:  # type: ignore[has-type] # the base class, which has no types, sets it
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        present = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and not splits.is_file() and len(present) < FOLDS:
            raise DataError(
                f"fold {self.fold}: {len(present)} labelled cases cannot be split into {FOLDS} folds; train fold all "
                f"instead, or write {splits}"
            )
        train, validation = super().do_split()
        if unknown := sorted((set(train) | set(validation)) - present):
            raise DataError(
                f"splits_final.json, fold {self.fold}: case {unknown[0]} is not among the preprocessed cases "
                f"({len(unknown)} such); correct the split or preprocess again"
            )
        if not train and self.needs_labelled_cases:
            raise DataError(f"fold {self.fold}: no training case; correct splits_final.json")
        return train, validation

    @reports_user_errors
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            line = keep_reference(Path(self.output_folder_base), Path(self.preprocessed_dataset_folder_base))
            self.print_to_log_file(line)


def to_device(target: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """A target, or one for each resolution."""
    if isinstance(target, list):
        return [item.to(device, non_blocking=True) for item in target]
    return target.to(device, non_blocking=True)


def _refuse_stale(configuration: dict[str, Any], transformer: Any) -> None:
    """The transformer stands in the ``ctnet`` block and in ``arch_kwargs``; one edited without the other is refused."""
    architecture = configuration["architecture"]
    if architecture["network_class_name"] != CTNET_CLASS_NAME or "ctnet" not in configuration:
        return
    built = architecture["arch_kwargs"].get("transformer")
    wanted = None if transformer is None else vars(transformer)
    if (built is None) != (wanted is None) or any(built[key] != value for key, value in (wanted or {}).items()):
        raise PlanError(
            "plan: ctnet.transformer and architecture.arch_kwargs.transformer differ; change it with `ctnet plan --set "
            "transformer.…`, not by hand"
        )
