"""Patches for pretraining: the views that the tasks read, and never a label.

``augmented`` goes through nnU-Net's own augmentation without mirroring; ``inside`` is cut out of the volume at the
same place without padding or interpolation, with an intensity augmentation of its own, because padding and resampling
would give a rotation away; ``pair`` is two independent sub-volumes of the scan, resized to the patch, for volume
fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from ctnet_nnunet.unlabeled.dataset import PooledDataset

ROTATION = np.deg2rad(15.0)
MIN_CONTENT = 0.25
FLAT_STD = 1e-3
PAIR_SCALE = (0.7, 1.5)


class PretrainLoader(nnUNetDataLoader):  # type: ignore[misc]
    """Batches of views (see :data:`ctnet_nnunet.pretext.base.Views`).

    Args:
        pool: Where scans are drawn from, uniformly.
        batch_size: Samples per batch.
        initial_patch_size: Voxels cut out for ``augmented`` before its transforms.
        patch_size: Voxels of ``augmented``.
        inside_size: Voxels of ``inside``.
        label_manager: The dataset's; only its kind matters to the base class.
        transforms: For ``augmented``; None leaves it as it is (validation).
        inside_transforms: For ``inside``; intensity only.
        views: Which views to make.
        different: Draw a batch of different scans, as far as the pool goes, because neighbours in it are fused.
    """

    def __init__(
        self,
        pool: PooledDataset,
        batch_size: int,
        initial_patch_size: Sequence[int],
        patch_size: Sequence[int],
        inside_size: Sequence[int],
        label_manager: LabelManager,
        transforms: BasicTransform | None,
        inside_transforms: BasicTransform | None,
        views: frozenset[str] = frozenset({"augmented", "inside"}),
        different: bool = False,
    ) -> None:
        super().__init__(pool, batch_size, initial_patch_size, patch_size, label_manager, transforms=transforms)
        self.inside_size = (1, *inside_size) if self.patch_size_was_2d else tuple(inside_size)
        self.inside_transforms = inside_transforms
        self.views = views
        self.different = different

    def get_indices(self) -> Any:
        """The batch's scans; a pool that is smaller than a batch is gone through again in the same order."""
        if not self.different:
            return super().get_indices()
        return np.resize(np.random.permutation(self.indices), self.batch_size)

    def generate_train_batch(self) -> dict[str, Any]:
        keys = self.get_indices()
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            samples = [self._sample(key) for key in keys]
        return {**{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}, "keys": keys}

    def _sample(self, key: str) -> dict[str, Tensor]:
        data, _, _, _ = self._data.load_case(key)
        sample = self._augmented_and_inside(data) if self.views & {"augmented", "inside"} else {}
        if "pair" in self.views:
            sample["pair"] = torch.stack([self._sub_volume(data), self._sub_volume(data)])
        return sample

    def _augmented_and_inside(self, data: Any) -> dict[str, Tensor]:
        shape = data.shape[1:]
        start = [_start(size, length) for size, length in zip(shape, self.patch_size, strict=True)]
        centre = [first + length // 2 for first, length in zip(start, self.patch_size, strict=True)]
        inside_start = [
            min(max(middle - length // 2, 0), max(size - length, 0))
            for middle, length, size in zip(centre, self.inside_size, shape, strict=True)
        ]
        image, padding = self._cut(data, start, self.patch_size)
        inside, _ = self._cut(data, inside_start, self.inside_size)
        fits = all(size >= length for size, length in zip(shape, self.inside_size, strict=True))
        usable = fits and has_content(inside)
        augmented = image if self.transforms is None else self.transforms(image=image, segmentation=padding)["image"]
        if self.inside_transforms is not None:
            everywhere = torch.zeros((1, *inside.shape[1:]), dtype=torch.int16)
            inside = self.inside_transforms(image=inside, segmentation=everywhere)["image"]
        return {"augmented": augmented, "inside": inside, "usable": torch.tensor(usable)}

    def _sub_volume(self, data: Any) -> Tensor:
        """A random part of the volume, 0.7 to 1.5 patches long per axis, resized to the patch and flipped at random."""
        parts = []
        for size, length in zip(data.shape[1:], self.final_patch_size, strict=True):
            wanted = 1 if length == 1 else max(2, int(length * np.random.uniform(*PAIR_SCALE)))
            extent = min(wanted, size)
            first = np.random.randint(0, size - extent + 1)
            parts.append(slice(int(first), int(first + extent)))
        crop = torch.from_numpy(np.ascontiguousarray(data[(slice(None), *parts)])).float()
        crop = crop[:, 0] if self.patch_size_was_2d else crop
        patch = self.final_patch_size[1:] if self.patch_size_was_2d else self.final_patch_size
        mode = "bilinear" if len(patch) == 2 else "trilinear"
        resized = F.interpolate(crop[None], size=tuple(patch), mode=mode, align_corners=False)[0]
        return resized.flip([axis for axis in range(1, resized.ndim) if np.random.uniform() < 0.5])

    def _cut(self, data: Any, start: Sequence[int], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A crop (C, *size) padded with 0, and where it is padded: (1, *size), -1 there, else 0."""
        box = [[first, first + length] for first, length in zip(start, size, strict=True)]
        image = torch.from_numpy(crop_and_pad_nd(data, box, 0)).float()
        padding = torch.full((1, *size), -1, dtype=torch.int16)
        within = [slice(max(-a, 0), n - max(b - s, 0)) for (a, b), n, s in zip(box, size, data.shape[1:], strict=True)]
        padding[(slice(None), *within)] = 0
        return (image[:, 0], padding[:, 0]) if self.patch_size_was_2d else (image, padding)


class CropLoader(PretrainLoader):
    """Batches of ``crop``: all channels at one random place, flipped together, intensities as they are.

    Args:
        pool: Where scans are drawn from, uniformly.
        batch_size: Samples per batch.
        patch_size: Voxels of a crop; padded with 0 where a scan is smaller.
        label_manager: The dataset's; only its kind matters to the base class.
        flips: Along each axis half of the time.
    """

    def __init__(
        self,
        pool: PooledDataset,
        batch_size: int,
        patch_size: Sequence[int],
        label_manager: LabelManager,
        flips: bool,
    ) -> None:
        super().__init__(
            pool, batch_size, patch_size, patch_size, patch_size, label_manager, None, None, frozenset({"crop"})
        )
        self.flips = flips

    def _sample(self, key: str) -> dict[str, Tensor]:
        data, _, _, _ = self._data.load_case(key)
        start = [_start(size, length) for size, length in zip(data.shape[1:], self.patch_size, strict=True)]
        crop, _ = self._cut(data, start, self.patch_size)
        if self.flips:
            crop = crop.flip([axis for axis in range(1, crop.ndim) if np.random.uniform() < 0.5])
        return {"crop": crop}


class FixedBatches:
    """The same validation batches in every epoch: numpy's generator is set to a seed for each, then put back."""

    def __init__(self, loader: PretrainLoader, count: int, seed: int) -> None:
        self.loader, self.count, self.seed = loader, count, seed
        self.index = 0

    def __next__(self) -> dict[str, Any]:
        state = np.random.get_state()
        np.random.seed((self.seed + self.index) % 2**32)
        self.index = (self.index + 1) % self.count
        try:
            return self.loader.generate_train_batch()
        finally:
            np.random.set_state(state)


def _start(size: int, length: int) -> int:
    """First voxel of a crop: random inside the volume where it fits, else centred with padding on both sides."""
    if size >= length:
        return int(np.random.randint(0, size - length + 1))
    return -((length - size) // 2)


def has_content(image: Tensor) -> bool:
    """Whether a crop (C, *size) shows anything: a quarter of its voxels not exactly 0, and not flat."""
    return bool((image != 0).any(0).float().mean() >= MIN_CONTENT and image.std() > FLAT_STD)


def inside_size(pool: PooledDataset, patch_size: Sequence[int], token_stride: Sequence[int]) -> tuple[int, ...]:
    """The largest size within the patch that every scan of the pool holds, scans below two tokens left out."""
    dimensions = len(patch_size)
    shapes = [pool.load_case(key)[0].shape[-dimensions:] for key in pool.identifiers]
    least = [2 * stride for stride in token_stride]
    fitting = [shape for shape in shapes if all(s >= m for s, m in zip(shape, least, strict=True))]
    return tuple(min([patch_size[axis], *(shape[axis] for shape in fitting)]) for axis in range(dimensions))


def pretrain_transforms(
    patch_size: Sequence[int], dummy_2d: bool, use_mask_for_norm: list[bool] | None
) -> tuple[list[int], BasicTransform, BasicTransform]:
    """nnU-Net's augmentation for the two views: small rotations, no mirroring.

    Returns:
        The size to cut out before augmentation, the transforms of ``augmented`` and those of ``inside``.
    """
    angle = (-ROTATION, ROTATION)
    initial = [int(size) for size in get_patch_size(list(patch_size), angle, angle, angle, (0.85, 1.25))]
    if dummy_2d:
        initial[0] = patch_size[0]
    stock = nnUNetTrainer.get_training_transforms(
        np.array(patch_size), angle, None, None, dummy_2d, use_mask_for_norm=use_mask_for_norm
    )
    intensity = [step for step in stock.transforms if isinstance(step, RandomTransform)]
    return initial, stock, ComposeTransforms(intensity)
