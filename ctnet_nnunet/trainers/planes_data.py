"""Slices of studies for pretraining on imaging planes: where each lies in the patient, and its targets.

Heatmaps are computed for the window that is cut out and go through nnU-Net's spatial transforms with it, as a
``regression_target``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import threadpool_limits
from torch import Tensor

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.geometry import Line, LocationAxis, Plane, disagreement, intersection, slice_locations
from ctnet_nnunet.planes.preprocessed import first_slice, original_planes, preprocessed_planes
from ctnet_nnunet.planes.sidecar import MOST_DISAGREEMENT_MM, GuestSlice, Sidecar
from ctnet_nnunet.unlabeled.dataset import PooledDataset

HOLD_OUT_FROM, HOLD_OUT_SHARE = 5, 0.1


@dataclass(frozen=True)
class PlaneSettings:
    """What the plan or, where it says nothing, planes.json decides; see the task's options."""

    hosts: tuple[str, ...]
    guests: tuple[str, ...]
    sigma_mm: float
    guest_slice: GuestSlice
    location_axis: LocationAxis

    @staticmethod
    def resolve(sidecar: Sidecar, options: Mapping[str, Any]) -> PlaneSettings:
        """The options of the ``ctnet`` block, planes.json where one is None."""
        return PlaneSettings(**sidecar.settings(options))

    def options(self) -> dict[str, Any]:
        """As options of the task."""
        return {f"planes_{name}": value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Host:
    """A preprocessed case whose slices are looked at.

    Attributes:
        case, group: Its name, and what keeps it on one side of a split.
        planes: Its slices after preprocessing.
        guests: The plane of each guest role; None where the study has none.
        locations: Of its slices, or None.
        count: Slices of the raw stack.
    """

    case: str
    group: str
    planes: tuple[Plane, ...]
    guests: tuple[Plane | None, ...]
    locations: tuple[float, ...] | None
    count: int

    def lines(self, index: int, corner: Sequence[int] = (0, 0)) -> list[Line | None]:
        """The line of each guest in a window of slice ``index`` whose first pixel is ``corner`` (row, column)."""
        window = self.planes[index].window(*corner)
        return [None if guest is None else intersection(window, guest) for guest in self.guests]


def find_hosts(
    sidecar: Sidecar, settings: PlaneSettings, folders: Mapping[str, Path], transpose_forward: Sequence[int]
) -> list[Host]:
    """The cases of host roles among ``folders`` (case → where it lies preprocessed), sorted.

    Raises:
        DataError: A case whose header and planes.json disagree, or whose geometry is not kept.
    """
    found = []
    for case, study, role in sorted(sidecar.cases()):
        if role not in settings.hosts or case not in folders:
            continue
        data, _, _, properties = nnUNetDatasetBlosc2(str(folders[case]), [case]).load_case(case)
        stack = sidecar.studies[study].stacks[role]
        try:
            planes = preprocessed_planes(properties, data.shape[1:], transpose_forward)
            off = disagreement(stack.stack, original_planes(properties, stack.shape[0]), stack.shape[1:])
        except DataError as error:
            raise DataError(f"case {case}: {error}") from None
        if off > MOST_DISAGREEMENT_MM:
            raise DataError(
                f"case {case}: planes.json puts its slices up to {off:.2g} mm from where its header does; convert the "
                "study again and preprocess"
            )
        locations = slice_locations(stack.stack, role, settings.location_axis)
        start = first_slice(properties)
        kept = None if locations is None else tuple(locations[start : start + len(planes)].tolist())
        guests = [
            None if guest == role else sidecar.studies[study].guest(guest, settings.guest_slice)
            for guest in settings.guests
        ]
        group = sidecar.group_of(study)
        found.append(Host(case, group, tuple(planes), tuple(guests), kept, stack.shape[0]))
    return found


def count_lines(hosts: Sequence[Host], guests: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Guest role → (cases of studies that have it, cases with a line in some slice)."""
    counts = {}
    for index, role in enumerate(guests):
        there = [host for host in hosts if host.guests[index] is not None]
        cut = [host for host in there if any(host.lines(k)[index] is not None for k in range(len(host.planes)))]
        counts[role] = (len(there), len(cut))
    return counts


def split_by_group(hosts: Sequence[Host], seed: int) -> tuple[list[str], list[str]]:
    """Cases to train on and to watch; from five groups on a tenth of them is watched only, else all are both."""
    groups = sorted({host.group for host in hosts})
    cases = [host.case for host in hosts]
    if len(groups) < HOLD_OUT_FROM:
        return cases, cases
    count = max(1, round(HOLD_OUT_SHARE * len(groups)))
    watched = set(np.random.RandomState(seed).permutation(groups)[:count].tolist())
    by_side = defaultdict[bool, list[str]](list)
    for host in hosts:
        by_side[host.group in watched].append(host.case)
    return by_side[False], by_side[True]


class PlanesLoader(nnUNetDataLoader):  # type: ignore[misc]
    """Batches of the view ``host`` (see :data:`ctnet_nnunet.pretext.base.Views`).

    Every group of studies is drawn as often as another, then one of its cases and one of its slices.

    Args:
        pool: The images; its identifiers are those of ``hosts``.
        hosts: What is known of each.
        sigma_mm: σ of the heatmaps.
        batch_size: Samples per batch.
        initial_patch_size: Pixels cut out before the transforms.
        patch_size: Pixels of the view.
        label_manager: The dataset's; only its kind matters to the base class.
        transforms: None leaves the window as it is and adds ``line`` and ``slices``.
    """

    def __init__(
        self,
        pool: PooledDataset,
        hosts: Mapping[str, Host],
        sigma_mm: float,
        batch_size: int,
        initial_patch_size: Sequence[int],
        patch_size: Sequence[int],
        label_manager: LabelManager,
        transforms: BasicTransform | None,
    ) -> None:
        groups = [hosts[case].group for case in pool.identifiers]
        sizes = Counter(groups)
        shares = np.array([1 / sizes[group] for group in groups]) / len(sizes)
        super().__init__(
            pool, batch_size, initial_patch_size, patch_size, label_manager,
            sampling_probabilities=shares, transforms=transforms,
        )  # fmt: skip
        # Cases without labels have no annotated region to draw from.
        self.has_ignore = False
        self.hosts, self.sigma_mm = hosts, sigma_mm

    def generate_train_batch(self) -> dict[str, Any]:
        keys = self.get_indices()
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            samples = [self._sample(key) for key in keys]
        return {**{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}, "keys": keys}

    def _sample(self, key: str) -> dict[str, Tensor]:
        data, _, _, _ = self._data.load_case(key)
        lower, upper = self.get_bbox(data.shape[1:], False, None)
        box = [[int(a), int(b)] for a, b in zip(lower, upper, strict=True)]
        image = torch.from_numpy(crop_and_pad_nd(data, box, 0)).float()[:, 0]
        return self.sample_of(self.hosts[key], image, box, data.shape[2:])

    def sample_of(
        self, host: Host, image: Tensor, box: Sequence[Sequence[int]], shape: Sequence[int]
    ) -> dict[str, Tensor]:
        """One sample: a window (C, h, w) at ``box`` (slice, rows, columns) of a slice of ``shape`` (H, W)."""
        index, corner = box[0][0], (box[1][0], box[2][0])
        lines = host.lines(index, corner)
        heat, valid = heatmaps(lines, image.shape[1:], _inside(box[1:], shape), self.sigma_mm)
        located = host.locations is not None
        known = {
            "heat_valid": torch.from_numpy(valid),
            "location": torch.tensor(host.locations[index] if host.locations else 0.0),
            "location_valid": torch.tensor(located),
        }
        if self.transforms is None:
            line = [[0.0] * 3 if item is None else [item.per_row, item.per_column, item.offset] for item in lines]
            known |= {"line": torch.tensor(line), "slices": torch.tensor(host.count)}
            return {"host": image, "heat": torch.from_numpy(heat), **known}
        padding = torch.full((1, *image.shape[1:]), -1, dtype=torch.int16)
        rows, columns = _inside(box[1:], shape)
        padding[0, rows, columns] = 0
        changed = self.transforms(image=image, segmentation=padding, regression_target=torch.from_numpy(heat))
        return {"host": changed["image"], "heat": changed["regression_target"], **known}


def heatmaps(
    lines: Sequence[Line | None], shape: Sequence[int], inside: tuple[slice, slice], sigma_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Heatmaps (G, h, w) of a window, and which are valid (G,): those whose line passes the image within it."""
    heat = np.zeros((len(lines), *shape), np.float32)
    valid = np.zeros(len(lines), bool)
    for index, line in enumerate(lines):
        if line is None:
            continue
        distance = line.distance(shape)
        seen = np.abs(distance[inside])
        valid[index] = seen.size > 0 and bool(seen.min() < sigma_mm)
        heat[index] = np.exp(-0.5 * (distance / sigma_mm) ** 2)
    return heat, valid


def _inside(box: Sequence[Sequence[int]], shape: Sequence[int]) -> tuple[slice, slice]:
    """The part of a window (rows, columns) that the slice (H, W) covers, in the window's own indices."""
    rows, columns = (
        slice(min(max(0, -low), high - low), max(0, min(high, size) - low))
        for (low, high), size in zip(box, shape, strict=True)
    )
    return rows, columns
