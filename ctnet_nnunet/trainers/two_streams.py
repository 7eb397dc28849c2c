"""A trainer with two streams: the fold's labelled cases through nnU-Net's loader, and scans without labels.

The unlabelled ones are imagesUn or, where a ``semi_split.json`` hides labels for an experiment, training cases whose
images alone are read. Both streams have the same patch, augmentation and mirroring.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor

from ctnet_nnunet import ranks
from ctnet_nnunet.checkpoints import random_state, restore_random_state
from ctnet_nnunet.errors import DataError, PlanError
from ctnet_nnunet.laterality import sided_labels
from ctnet_nnunet.planning.options import Mode
from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet, to_device
from ctnet_nnunet.trainers.data_check import check_batch
from ctnet_nnunet.trainers.lateral_mirroring import MirrorPlan, direction_of
from ctnet_nnunet.trainers.semi_supervised_data import (
    FoldCases,
    SemiSplit,
    TwoStreams,
    UnlabelledLoader,
    augmenter,
    fold_cases,
    published_augmentation,
    read_semi_split,
)
from ctnet_nnunet.trainers.unlabeled_scans import checked_unlabeled_folder, preprocess_command, refuse_validation_cases
from ctnet_nnunet.unlabeled.dataset import PooledDataset, unlabeled_folder, unlabeled_identifiers


class TwoStreamTrainer(nnUNetTrainerCTNet):
    """The data of :class:`~ctnet_nnunet.trainers.semi_supervised.SemiSupervisedTrainer`."""

    mode: ClassVar[Mode] = "semi_supervised"
    needs_unlabelled: ClassVar[bool] = True
    needs_equal_shares: ClassVar[bool] = True

    def _apply_schedule(self) -> None:
        super()._apply_schedule()
        self.semi = self.options.semi_supervised
        self.enable_deep_supervision = self.semi.deep_supervision
        if self.semi.batch_labelled is not None:
            self.configuration_manager.configuration["batch_size"] = self.semi.batch_labelled

    def cases(self) -> FoldCases:
        """The fold's labelled, hidden and validation cases."""
        train, validation = super().do_split()
        split = self._semi_split()
        return fold_cases(split, train, validation, self.fold, self.semi.transductive)

    @functools.cached_property
    def labelled_cases(self) -> list[str]:
        """Those whose labels are learned from."""
        return self.cases().labelled

    def do_split(self) -> tuple[list[str], list[str]]:
        """Stock's split, without the cases whose labels are hidden."""
        cases = self.cases()
        return cases.labelled, cases.validation

    def _semi_split(self) -> SemiSplit | None:
        return read_semi_split(Path(self.preprocessed_dataset_folder_base), self._present(), self.fold)

    def _present(self) -> list[str]:
        present: list[str] = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        return present

    def _unlabeled_folder(self) -> Path | None:
        """Where imagesUn lies preprocessed; None when a semi_split decides what is unlabelled."""
        if self._semi_split() is not None:
            return None
        return checked_unlabeled_folder(self)

    @functools.cached_property
    def pool(self) -> PooledDataset | None:
        """The unlabelled scans, looked at first; None for a trainer without. Only a training needs them.

        Raises:
            DataError: There are none, or one cannot be used.
        """
        cases = self.cases()
        if not self.needs_unlabelled:
            self.print_to_log_file(f"{len(cases.labelled)} labelled cases, and no unlabelled one")
            return None
        folder = self._unlabeled_folder()
        if not cases.hidden and (folder is None or not unlabeled_identifiers(folder)):
            remedy = (
                "list training cases of this fold under unlabeled in semi_split.json"
                if folder is None
                else f"put scans into imagesUn and run {preprocess_command(self)}"
            )
            raise DataError(f"fold {self.fold}: no unlabelled cases, so there is nothing to learn from; {remedy}")
        # The labelled cases' images, too: there the teacher's labels are nearly right.
        images = [*cases.hidden, *cases.labelled]
        pool = PooledDataset(Path(self.preprocessed_dataset_folder), images, folder)
        if folder is not None and not self.semi.transductive:
            refuse_validation_cases(self, folder, pool.unlabeled_identifiers, cases.validation)
        self.check_cases(pool)
        self.print_to_log_file(
            f"{len(cases.labelled)} labelled and {len(pool.identifiers) - len(cases.labelled)} unlabelled cases "
            f"({len(pool.unlabeled_identifiers)} of imagesUn, {len(cases.hidden)} with labels hidden); the unlabelled "
            "stream reads the images of all of them"
        )
        return pool

    def _training_directions(self) -> Iterable[Sequence[float] | None]:
        """Those of unlabelled scans, too: mirrored along another axis, they would teach the sides wrong."""
        yield from super()._training_directions()
        if (folder := self._folder_of_the_frame()) is not None and folder.is_dir():
            scans = nnUNetDatasetBlosc2(str(folder), unlabeled_identifiers(folder))
            for scan in scans.identifiers:
                yield direction_of(scans.load_case(scan)[3])

    def _folder_of_the_frame(self) -> Path | None:
        """Scans that decide on the mirroring: the twin's, too, or it would not be trained like the others."""
        if self.needs_unlabelled:
            return self._unlabeled_folder()
        base, identifier = Path(self.preprocessed_dataset_folder_base), self.configuration_manager.data_identifier
        return None if self._semi_split() is not None else unlabeled_folder(base, identifier)

    def _plan_mirroring(self, axes: Sequence[int]) -> MirrorPlan:
        if self.semi.augmentation == "rlsss":
            axes = [axis for axis in axes if axis >= len(self.configuration_manager.patch_size) - 2]
        return super()._plan_mirroring(axes)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        rotation, dummy_2d, initial, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.semi.augmentation == "rlsss":  # nothing there needs a margin
            initial = list(self.configuration_manager.patch_size)
        self.geometry = rotation, dummy_2d, initial, axes
        return self.geometry

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        transforms = super().get_training_transforms(*args, **kwargs)
        if self.semi.augmentation == "nnunet":
            return transforms
        sided = sided_labels(self._structures()).any
        return published_augmentation(transforms, self.configuration_manager.patch_size, rotate=not sided)

    def get_dataloaders(self) -> tuple[TwoStreams, Any]:
        labelled, validation = super().get_dataloaders()
        if self.pool is None:
            return TwoStreams(labelled, None), validation
        patch, masks = self.configuration_manager.patch_size, self.configuration_manager.use_mask_for_norm or []
        rotation, dummy_2d, initial, axes = self.geometry
        transforms = self.get_training_transforms(patch, rotation, None, axes, dummy_2d, use_mask_for_norm=masks)
        masked = [channel for channel, inside in enumerate(masks) if inside]
        loader = UnlabelledLoader(
            self.pool, self._unlabelled_batch(), initial, patch, self.label_manager, transforms, masked
        )
        # Half of the labelled stream's processes: a step takes several times as long as a supervised one.
        processes = -(-get_allowed_n_proc_DA() // 2)
        unlabelled = augmenter(loader, processes, self.device.type == "cuda")
        before = random_state()
        next(unlabelled)
        restore_random_state(before)  # in one process the labelled stream goes on as the twin's does
        return TwoStreams(labelled, unlabelled), validation

    def _unlabelled_batch(self) -> int:
        """Of this process."""
        if self.semi.batch_unlabelled is None:
            return int(self.batch_size)
        processes = ranks.world_size()
        if self.semi.batch_unlabelled % processes:
            raise PlanError(
                f"ctnet option semi_supervised.batch_unlabelled={self.semi.batch_unlabelled}: not divisible by the "
                f"{processes} processes; choose a multiple"
            )
        return int(self.semi.batch_unlabelled) // processes

    def labelled(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Images and targets of the labelled stream on the device, looked at first."""
        part = batch["labelled"]
        check_batch(part["data"], part["target"], part["keys"], self.highest_label)
        return part["data"].to(self.device, non_blocking=True), to_device(part["target"], self.device)

    def unlabelled(self, batch: dict[str, Any]) -> Tensor:
        """Images of the unlabelled stream on the device, looked at first."""
        part = batch["unlabelled"]
        check_batch(part["data"], part["data"], part["keys"], None)
        images: Tensor = part["data"].to(self.device, non_blocking=True)
        return images
