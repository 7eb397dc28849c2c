"""Training data that cannot be learned from: found cheaply, and the case named.

Stock nnU-Net trains on NaN until the loss is NaN, and ends a label that dataset.json lacks in an IndexError or, on a
GPU, in a device-side assert that takes the process down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from ctnet_nnunet.errors import DataError


class Cases(Protocol):
    """What both nnU-Net's datasets and the pool of unlabelled scans offer."""

    identifiers: Sequence[str]

    def load_case(self, identifier: str) -> tuple[Any, ...]:
        """Data (C, X, Y, Z), readable by slices, first."""


class Remedy(NamedTuple):
    """What to do about a case: where its image lies, and what to run behind the correction."""

    folder: str
    command: str


LABELLED = Remedy("imagesTr", "preprocess again")


def check_cases(
    dataset: Cases, channels: int, configuration: str, remedy: Callable[[str], Remedy] = lambda case: LABELLED
) -> None:
    """Look at every case's number of channels and at one slice of it.

    One slice is enough for NaN, because normalisation spreads it over the whole channel; a slice without any contrast
    has the whole channel read, so that only a channel of one value is refused.

    Args:
        dataset: See :class:`Cases`.
        channels: How many the plan wants.
        configuration: Plans and configuration, for people.
        remedy: Of a case.

    Raises:
        DataError: The first case that has another number of channels, NaN or infinite values, or a constant channel.
    """
    for case in dataset.identifiers:
        data = dataset.load_case(case)[0]
        folder, command = remedy(case)
        if data.shape[0] != channels:
            what = "channel_names in dataset.json" if folder == LABELLED.folder else f"the scan's channels in {folder}"
            raise DataError(
                f"case {case}: its preprocessed image has {data.shape[0]} channels, the plan for {configuration} wants "
                f"{channels}; correct {what} and {command}"
            )
        for channel in range(channels):
            _check_channel(case, channel, data, folder, command)


def _check_channel(case: str, channel: int, data: Any, folder: str, command: str) -> None:
    middle = np.asarray(data[channel, data.shape[1] // 2])
    if np.isfinite(middle).all() and middle.min() == middle.max():
        middle = np.asarray(data[channel])
    if not np.isfinite(middle).all():
        raise DataError(
            f"case {case}, channel {channel}: NaN or infinite values in its preprocessed image; repair or remove the "
            f"image in {folder} and {command}"
        )
    if middle.min() == middle.max():
        raise DataError(
            f"case {case}, channel {channel}: every voxel has the same value; replace or remove the image in {folder} "
            f"and {command}"
        )


def highest_label(labels: LabelManager) -> int | None:
    """The highest number that a target may hold, the ignore label included; None for regions, which have no numbers.

    Raises:
        DataError: If the labels are not numbered 0, 1, 2, …
    """
    if labels.has_regions:
        return None
    if list(labels.all_labels) != list(range(len(labels.all_labels))):
        raise DataError(
            f"dataset.json: the labels {[int(label) for label in labels.all_labels]} are not numbered 0, 1, 2, … "
            "without gaps; renumber them in labelsTr and dataset.json and preprocess again"
        )
    return len(labels.all_labels) - (0 if labels.has_ignore_label else 1)


def check_batch(data: Tensor, target: Tensor | Sequence[Tensor], keys: Iterable[str], highest: int | None) -> None:
    """Look at a batch before the loss does.

    Args:
        data: Images (B, C, *patch), on the CPU.
        target: Labels (B, 1, *patch), or a list of them with the full resolution first.
        keys: The cases of the batch, in order.
        highest: From :func:`highest_label`; None looks at the images alone.

    Raises:
        DataError: On a non-finite image or an unknown label, naming the case.
    """
    labels = target if isinstance(target, Tensor) else target[0]
    for sample, case in enumerate(keys):
        # A sum is not finite if any voxel is not, and costs a tenth of looking at each.
        if not torch.isfinite(data[sample].sum(dtype=torch.float64)):
            raise DataError(f"case {case}: NaN or infinite values in its image; repair or remove it, preprocess again")
        if highest is not None and (found := int(labels[sample].max())) > highest:
            raise DataError(
                f"case {case}: its segmentation holds the label {found}, dataset.json knows labels up to {highest}; "
                "correct labelsTr or dataset.json and preprocess again (--verify_dataset_integrity finds such cases)"
            )
