"""Cases and batches that cannot be learned from are named before or at their first use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.trainers.data_check import LABELLED, Remedy, check_batch, check_cases, highest_label

CLASSES = {"background": 0, "a": 1, "b": 2}


class ReadCounted:
    """An image like blosc2's: a shape, and voxels on request, which are counted."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.shape, self.read = image, image.shape, 0

    def __getitem__(self, key: Any) -> np.ndarray:
        part = self.image[key]
        self.read += part.size
        return part


class Cases:
    def __init__(self, **images: np.ndarray) -> None:
        self.images = {case: ReadCounted(image.astype(np.float32)) for case, image in images.items()}
        self.identifiers = list(images)

    def load_case(self, identifier: str) -> tuple[Any, ...]:
        return self.images[identifier], None, None, {}


def image(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(channels, 6, 8, 8))


def test_good_cases_cost_one_slice_a_channel() -> None:
    cases = Cases(first=image(2), second=image(2))
    check_cases(cases, 2, "plan")
    assert {case.read for case in cases.images.values()} == {2 * 64}


def test_a_flat_slice_is_no_flat_image() -> None:
    padded = image()
    padded[:, 3] = 0
    cases = Cases(padded=padded)
    check_cases(cases, 1, "plan")
    assert cases.images["padded"].read == 64 + padded.size


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x * np.nan, "case bad, channel 0: NaN"),
        (lambda x: np.where(x == x.max(), np.inf, 0 * x), "case bad, channel 0: NaN or infinite"),
        (lambda x: 0 * x + 3, "case bad, channel 0: every voxel has the same value"),
        (
            lambda x: np.concatenate([x, x]),
            "case bad: its preprocessed image has 2 channels, the plan for P, C wants 1",
        ),
    ],
)
def test_bad_cases_are_named(spoil: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_cases(Cases(good=image(), bad=spoil(image())), 1, "P, C")


def test_the_second_channel_counts_too() -> None:
    both = image(2)
    both[1] = 0
    with pytest.raises(DataError, match="case half, channel 1"):
        check_cases(Cases(half=both), 2, "plan")


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda x: x * np.nan, "repair or remove the image in imagesUn and run ctnet again"),
    (lambda x: 0 * x, "replace or remove the image in imagesUn and run ctnet again"),
    (lambda x: np.concatenate([x, x]), "correct the scan's channels in imagesUn and run ctnet again"),
])  # fmt: skip
def test_the_remedy_of_an_unlabelled_scan_is_its_own(spoil: Any, words: str) -> None:
    def remedy(case: str) -> Remedy:
        return Remedy("imagesUn", "run ctnet again") if case == "scan" else LABELLED

    with pytest.raises(DataError, match=f"case scan.*{words}"):
        check_cases(Cases(labelled=image(), scan=spoil(image())), 1, "P, C", remedy)
    with pytest.raises(DataError, match="preprocess again"):
        check_cases(Cases(labelled=spoil(image()), scan=image()), 1, "P, C", remedy)


def batch(label: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    data, target = torch.randn(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4, dtype=torch.int16)
    target[1, 0, 0, 0, 0] = label
    return data, target


def test_labels_up_to_the_highest_pass() -> None:
    data, target = batch(2)
    check_batch(data, target, ["x", "y"], 2)
    check_batch(data, [target, target[..., ::2]], ["x", "y"], 2)


def test_an_unknown_label_names_its_case() -> None:
    data, target = batch(3)
    for targets in (target, [target, target[..., ::2]]):
        with pytest.raises(DataError, match=r"case y: its segmentation holds the label 3, .* knows labels up to 2"):
            check_batch(data, targets, ["x", "y"], 2)
    check_batch(data, target, ["x", "y"], None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_single_bad_voxel_names_its_case(value: float) -> None:
    data, target = batch()
    data[0, 0, 1, 2, 3] = value
    with pytest.raises(DataError, match="case x: NaN or infinite"):
        check_batch(data, target, ["x", "y"], 2)


def test_large_values_are_no_infinity() -> None:
    data, target = batch()
    check_batch(torch.full_like(data, 3e38), target, ["x", "y"], 2)


@pytest.mark.parametrize(
    ("labels", "order", "highest"),
    [
        (CLASSES, None, 2),
        ({**CLASSES, "ignore": 3}, None, 3),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2], None),
    ],
)
def test_the_highest_label(labels: dict[str, Any], order: list[int] | None, highest: int | None) -> None:
    assert highest_label(LabelManager(labels, order)) == highest


def test_labels_with_a_gap_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[0, 1, 3\] are not numbered"):
        highest_label(LabelManager({"background": 0, "a": 1, "b": 3}, None))
