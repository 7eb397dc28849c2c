"""The two streams of semi-supervised training: labelled cases, and patches of the others without any label."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.unlabeled.dataset import PooledDataset

SEMI_SPLIT = "semi_split.json"
KEPT_OF_STOCK = (
    MirrorTransform, MaskImageTransform, RemoveLabelTansform, ConvertSegmentationToRegionsTransform,
    DownsampleSegForDSTransform,
)  # fmt: skip


@dataclass(frozen=True)
class SemiSplit:
    """Training cases whose labels may be used, and those whose labels are hidden (for experiments).

    ``of_one_fold``: the lists were given for this fold alone; its unlabelled cases need not be training cases of it.
    """

    labeled: frozenset[str]
    unlabeled: frozenset[str]
    of_one_fold: bool = False


@dataclass(frozen=True)
class FoldCases:
    """What a fold trains and validates on.

    Attributes:
        labelled: Cases of the labelled stream.
        hidden: Training cases (transductive: validation cases, too) of which the unlabelled stream reads the images.
        validation: Cases of the validation.
    """

    labelled: list[str]
    hidden: list[str]
    validation: list[str]


def read_semi_split(
    preprocessed_dataset_folder: Path, present: Collection[str], fold: int | str
) -> SemiSplit | None:
    """Read ``semi_split.json``; None when there is none.

    It holds ``{"labeled": […], "unlabeled": […]}`` for all folds, or such lists for each: ``{"folds": {"0": {…}}}``.

    Args:
        preprocessed_dataset_folder: Where it lies, beside splits_final.json.
        present: The preprocessed cases.
        fold: Which fold is trained.

    Raises:
        DataError: It is broken, lacks the fold, names an unknown case, or a case is in both lists.
    """
    file = preprocessed_dataset_folder / SEMI_SPLIT
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error}); correct or remove it") from None
    of_one_fold = isinstance(content, dict) and set(content) == {"folds"} and isinstance(content["folds"], dict)
    if of_one_fold:
        if str(fold) not in content["folds"]:
            raise DataError(f"{file}: has no lists for fold {fold}; add them under folds, or train another fold")
        content = content["folds"][str(fold)]
    keys = ("labeled", "unlabeled")
    if not isinstance(content, dict) or set(content) != set(keys) or not all(_are_names(content[key]) for key in keys):
        raise DataError(f'{file}: write it as {{"labeled": [case, …], "unlabeled": [case, …]}}')
    split = SemiSplit(frozenset(content["labeled"]), frozenset(content["unlabeled"]), of_one_fold)
    if shared := sorted(split.labeled & split.unlabeled):
        raise DataError(f"{file}: case {shared[0]} is both labelled and unlabelled; keep it in one of the lists")
    if unknown := sorted((split.labeled | split.unlabeled) - set(present)):
        raise DataError(f"{file}: case {unknown[0]} is not among the preprocessed cases; correct the list")
    return split


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def fold_cases(
    split: SemiSplit | None, train: Sequence[str], validation: Sequence[str], fold: int | str, transductive: bool
) -> FoldCases:
    """Divide a fold's cases.

    A validation case is no unlabelled case unless ``transductive``. Fold ``all`` holds nothing out: it validates on the
    labelled cases, so that a hidden label decides nothing there either.

    Raises:
        DataError: No labelled case, or a case of the unlabelled stream is also one of the validation.
    """
    if split is None:
        hidden = sorted(set(validation) - set(train)) if transductive else []
        return FoldCases(list(train), hidden, list(validation))
    labelled = [case for case in train if case in split.labeled]
    hidden = sorted(split.unlabeled) if split.of_one_fold else [case for case in train if case in split.unlabeled]
    if not labelled:
        raise DataError(f"{SEMI_SPLIT}: none of fold {fold}'s training cases is labelled; list some under labeled")
    if fold == "all":
        return FoldCases(labelled, hidden, labelled)
    if transductive:
        hidden = sorted({*hidden, *(case for case in validation if case not in labelled)})
    elif shared := sorted(set(hidden) & set(validation)):
        also = SEMI_SPLIT if split.of_one_fold else "the training cases"
        raise DataError(
            f"splits_final.json, fold {fold}: {shared[0]} is a validation case and among {also}, so a validation case "
            "would be among the unlabelled ones; correct the split, or set semi_supervised.transductive=true"
        )
    return FoldCases(labelled, hidden, list(validation))


class MaskZeros(BasicTransform):  # type: ignore[misc]
    """Mark what is 0 in all channels that were normalised inside a mask as outside, as nnU-Net's labels of them do."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        outside = (data_dict["image"][self.channels] == 0).all(0, keepdim=True)
        data_dict["segmentation"] = data_dict["segmentation"].masked_fill(outside, -1)
        return data_dict


class OwnLabelMap:
    """A pool whose label maps, all zeros, may be written to, as transforms do; untouched pages take no memory."""

    def __init__(self, pool: PooledDataset) -> None:
        self.pool, self.identifiers = pool, pool.identifiers

    def load_case(self, identifier: str) -> tuple[Any, np.ndarray, None, dict[str, Any]]:
        data, _, _, properties = self.pool.load_case(identifier)
        return data, np.zeros((1, *data.shape[1:]), np.int16), None, properties


class UnlabelledLoader(nnUNetDataLoader):  # type: ignore[misc]
    """Patches from anywhere in the pool's scans: ``{'data', 'keys'}``, and no target, because there is none.

    Args:
        pool: Where scans are drawn from, uniformly.
        batch_size: Patches per batch.
        initial_patch_size, patch_size: Voxels cut out before and left behind the transforms.
        label_manager: The dataset's; only its kind matters to the base class.
        transforms: Of the labelled stream, without what is for labels.
        masked: The channels that the plan normalises inside a mask, outside of which they are 0.
    """

    def __init__(
        self,
        pool: PooledDataset,
        batch_size: int,
        initial_patch_size: Sequence[int],
        patch_size: Sequence[int],
        label_manager: LabelManager,
        transforms: ComposeTransforms,
        masked: Sequence[int],
    ) -> None:
        steps = [MaskZeros(masked), *transforms.transforms] if masked else transforms.transforms
        transforms = ComposeTransforms(steps)
        images = OwnLabelMap(pool)
        super().__init__(images, batch_size, initial_patch_size, patch_size, label_manager, transforms=transforms)
        self.has_ignore = False  # nothing is annotated, so no place is better than another

    def generate_train_batch(self) -> dict[str, Any]:
        batch = super().generate_train_batch()
        return {"data": batch["data"], "keys": batch["keys"]}


class TwoStreams:
    """Draws from both streams at once: ``{'labelled': batch, 'unlabelled': batch or None}``."""

    def __init__(self, labelled: Any, unlabelled: Any | None) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.draw_unlabelled = unlabelled is not None

    def __next__(self) -> dict[str, Any]:
        unlabelled = next(self.unlabelled) if self.unlabelled is not None and self.draw_unlabelled else None
        return {"labelled": next(self.labelled), "unlabelled": unlabelled}

    def finish(self) -> None:
        """End the worker processes, which nnU-Net ends only where it sees an augmenter of its own."""
        for stream in (self.labelled, self.unlabelled):
            if isinstance(stream, NonDetMultiThreadedAugmenter):
                stream._finish()


def augmenter(loader: nnUNetDataLoader, processes: int, pin_memory: bool) -> Any:
    """A loader in worker processes, as nnU-Net runs its own; in this process with 0."""
    if processes == 0:
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        loader, None, processes, max(6, processes // 2), seeds=None, pin_memory=pin_memory, wait_time=0.002
    )


def published_augmentation(stock: ComposeTransforms, patch_size: Sequence[int], rotate: bool) -> ComposeTransforms:
    """What the published method does to a patch: flips, and rotations by 90° in the plane of the last two axes.

    Args:
        stock: nnU-Net's transforms, of which the mirroring and all that is for labels is kept.
        patch_size: Voxels per axis; the plane must be square for rotations.
        rotate: False leaves rotations out.
    """
    steps = [step for step in stock.transforms if isinstance(step, KEPT_OF_STOCK)]
    if rotate and patch_size[-1] == patch_size[-2]:
        # Behind the mirroring, whose axes are those of the scan.
        place = sum(isinstance(step, MirrorTransform) for step in steps)
        plane = {len(patch_size) - 2, len(patch_size) - 1}
        steps.insert(place, Rot90Transform(1, (0, 1, 2, 3), plane))
    return ComposeTransforms(steps)
