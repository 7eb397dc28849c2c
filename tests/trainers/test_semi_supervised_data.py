"""Who is labelled and who is not, patches without labels, both streams together, the published augmentation."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.trainers.semi_supervised_data import (
    SEMI_SPLIT,
    FoldCases,
    MaskZeros,
    SemiSplit,
    TwoStreams,
    UnlabelledLoader,
    fold_cases,
    published_augmentation,
    read_semi_split,
)
from ctnet_nnunet.unlabeled.dataset import NoLocations
from tests.trainers.test_pretrain_data import Pool

PRESENT = ["a", "b", "c", "d"]


def written(folder: Path, content: Any) -> Path:
    (folder / SEMI_SPLIT).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_split_is_read_and_may_be_absent(tmp_path: Path) -> None:
    assert read_semi_split(tmp_path, PRESENT, 0) is None
    split = read_semi_split(written(tmp_path, {"labeled": ["a"], "unlabeled": ["b", "c"]}), PRESENT, 0)
    assert split == SemiSplit(frozenset("a"), frozenset("bc"))


def test_lists_fold_by_fold_name_unlabelled_cases_beside_the_training_cases(tmp_path: Path) -> None:
    folder = written(tmp_path, {"folds": {"1": {"labeled": ["a"], "unlabeled": ["c", "b"]}}})
    split = read_semi_split(folder, PRESENT, 1)
    assert split == SemiSplit(frozenset("a"), frozenset("bc"), of_one_fold=True)
    assert fold_cases(split, ["a"], ["d"], 1, False) == FoldCases(["a"], ["b", "c"], ["d"])
    with pytest.raises(DataError, match=r"fold 1: b is a validation case and among semi_split\.json"):
        fold_cases(split, ["a"], ["b"], 1, False)
    with pytest.raises(DataError, match="has no lists for fold 0"):
        read_semi_split(folder, PRESENT, 0)


@pytest.mark.parametrize(("content", "words"), [
    ("{", "cannot be read as JSON"), ({"folds": {"0": {"labeled": ["a"]}}}, "write it as"),
    ([], "write it as"), ({"labeled": ["a"]}, "write it as"),
    ({"labeled": ["a"], "unlabelled": ["b"]}, "write it as"), ({"labeled": "a", "unlabeled": []}, "write it as"),
    ({"labeled": [1], "unlabeled": []}, "write it as"),
    ({"labeled": ["a", "b"], "unlabeled": ["b"]}, "b is both labelled and unlabelled"),
    ({"labeled": ["a"], "unlabeled": ["x"]}, "x is not among the preprocessed"),
])  # fmt: skip
def test_a_bad_split_is_refused_in_one_line(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_semi_split(written(tmp_path, content), PRESENT, 0)
    assert words in str(caught.value) and SEMI_SPLIT in str(caught.value)
    assert "\n" not in str(caught.value)


SPLIT = SemiSplit(frozenset("ab"), frozenset("cdv"))


@pytest.mark.parametrize(("split", "train", "validation", "fold", "transductive", "expected"), [
    (None, "abcd", "v", 0, False, FoldCases([*"abcd"], [], ["v"])),
    (None, "abcd", "v", 0, True, FoldCases([*"abcd"], ["v"], ["v"])),
    (None, "abc", "abc", "all", True, FoldCases([*"abc"], [], [*"abc"])),
    (SPLIT, "abcd", "v", 0, False, FoldCases([*"ab"], [*"cd"], ["v"])),  # v is unlabelled and left out
    (SPLIT, "abcd", "v", 0, True, FoldCases([*"ab"], [*"cdv"], ["v"])),
    (SPLIT, "acde", "b", 0, False, FoldCases(["a"], [*"cd"], ["b"])),    # e is in neither list
    (SPLIT, "abcdv", "abcdv", "all", False, FoldCases([*"ab"], [*"cdv"], [*"ab"])),
])  # fmt: skip
def test_cases_of_a_fold(
    split: SemiSplit | None, train: str, validation: str, fold: Any, transductive: bool, expected: FoldCases
) -> None:
    found = fold_cases(split, [*train], [*validation], fold, transductive)
    assert found == expected
    assert not set(found.labelled) & set(found.hidden)
    assert transductive or not set(found.hidden) & set(found.validation)


def test_a_fold_without_labels_and_a_leak_are_refused() -> None:
    with pytest.raises(DataError, match="none of fold 2's training cases is labelled"):
        fold_cases(SPLIT, ["c"], ["v"], 2, False)
    with pytest.raises(DataError, match=r"fold 1: d is a validation case and among the training cases.*transductive"):
        fold_cases(SPLIT, [*"abcd"], ["d"], 1, False)


class ImagePool(Pool):
    """Scans as PooledDataset gives them, their label maps read only; the target is poison, which nothing may see."""

    def load_case(self, name: str) -> tuple[Any, np.ndarray, None, dict[str, Any]]:
        data = super().load_case(name)[0]
        return data, np.broadcast_to(np.int16(255), (1, *data.shape[1:])), None, {"class_locations": NoLocations()}


class Keep(BasicTransform):
    """Keeps the label maps that transforms get."""

    def __init__(self, kept: list[torch.Tensor]) -> None:
        self.kept = kept

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        self.kept.append(data_dict["segmentation"].clone())
        return data_dict


def loader(pool: Pool, ignore: bool = False, seen: list[torch.Tensor] | None = None) -> UnlabelledLoader:
    labels = {"background": 0, "structure": 1, **({"ignore": 2} if ignore else {})}
    transforms = ComposeTransforms([RemoveLabelTansform(-1, 0), Keep([] if seen is None else seen)])
    return UnlabelledLoader(pool, 3, (8, 8, 8), (8, 8, 8), LabelManager(labels, None), transforms, ())


def test_unlabelled_batches_are_images_from_anywhere_and_nothing_else(tmp_path: Path) -> None:
    pool = ImagePool(tmp_path, {"a": (1, 10, 16, 20), "b": (1, 12, 9, 8)})
    np.random.seed(0)
    seen: list[torch.Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # with an ignore label, stock warns of every scan without annotation
        batches = [loader(pool, ignore=True, seen=seen).generate_train_batch() for _ in range(10)]
    assert all(set(batch) == {"data", "keys"} for batch in batches)
    assert all(segmentation.unique().tolist() == [0] for segmentation in seen)
    assert all(tuple(batch["data"].shape) == (3, 1, 8, 8, 8) for batch in batches)
    assert {key for batch in batches for key in batch["keys"]} == {"a", "b"}
    images = [image for batch in batches for image, key in zip(batch["data"], batch["keys"], strict=True) if key == "a"]
    assert len({float(image[0, 0, 0, 0]) for image in images}) > 5
    assert all(np.isin(image.numpy(), pool.arrays["a"]).all() for image in images)


def test_outside_of_a_mask_is_marked_by_its_zeros() -> None:
    image = torch.ones(2, 2, 2)
    image[:, 0, 0], image[0, 1, 1] = 0, 0
    found = MaskZeros([0, 1])(image=image, segmentation=torch.zeros(1, 2, 2, dtype=torch.int16))["segmentation"]
    assert found.tolist() == [[[-1, 0], [0, 0]]]
    found = MaskZeros([0])(image=image, segmentation=torch.zeros(1, 2, 2, dtype=torch.int16))["segmentation"]
    assert found.tolist() == [[[-1, 0], [0, -1]]]


def test_a_plan_with_masks_marks_them_in_every_patch(tmp_path: Path) -> None:
    pool = ImagePool(tmp_path, {"a": (1, 8, 8, 8)})
    pool.write("a", np.where(np.arange(8)[:, None, None] < 3, 0, pool.arrays["a"]))
    seen: list[torch.Tensor] = []
    labels = LabelManager({"background": 0, "structure": 1}, None)
    UnlabelledLoader(
        pool, 2, (8, 8, 8), (8, 8, 8), labels, ComposeTransforms([Keep(seen)]), masked=[0]
    ).generate_train_batch()
    assert all(segmentation[0, :, 0, 0].tolist() == [-1, -1, -1, 0, 0, 0, 0, 0] for segmentation in seen)


def test_two_streams_are_drawn_together_or_the_labelled_one_alone() -> None:
    streams = TwoStreams(iter("abc"), iter("xyz"))
    assert next(streams) == {"labelled": "a", "unlabelled": "x"}
    streams.draw_unlabelled = False
    assert next(streams) == {"labelled": "b", "unlabelled": None}
    streams.draw_unlabelled = True
    assert next(streams) == {"labelled": "c", "unlabelled": "y"}
    assert next(TwoStreams(iter("a"), None)) == {"labelled": "a", "unlabelled": None}


def stock(patch: tuple[int, ...], mirror: tuple[int, ...]) -> ComposeTransforms:
    return nnUNetTrainer.get_training_transforms(np.array(patch), (-0.5, 0.5), [[1.0] * len(patch)], mirror, False)


@pytest.mark.parametrize(("patch", "rotate", "rotations"), [
    ((8, 16, 16), True, 1), ((8, 16, 24), True, 0), ((8, 16, 16), False, 0), ((16, 16), True, 1),
])  # fmt: skip
def test_the_published_augmentation_turns_square_planes(patch: tuple[int, ...], rotate: bool, rotations: int) -> None:
    made = published_augmentation(stock(patch, (len(patch) - 1,)), patch, rotate)
    kinds = [type(step) for step in made.transforms]
    assert kinds.count(Rot90Transform) == rotations
    assert kinds.index(MirrorTransform) == 0
    assert not [kind for kind in kinds if kind.__name__ in ("SpatialTransform", "RandomTransform")]


def test_the_published_augmentation_gives_every_rotation_and_flip_and_labels_follow() -> None:
    patch = (1, 2, 2)
    made = published_augmentation(stock(patch, (1, 2)), patch, True)
    image = torch.arange(4.0).view(1, *patch)
    np.random.seed(0)
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        out = made(image=image.clone(), segmentation=image.to(torch.int16))
        assert torch.equal(out["image"].to(torch.int16), out["segmentation"][0])
        seen.add(tuple(out["image"].flatten().tolist()))
    assert len(seen) == 8  # the symmetries of a square
