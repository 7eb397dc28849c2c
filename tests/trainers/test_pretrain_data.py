"""Views for pretraining: exact crops, no padding where the scan is large enough, and an honest ``usable``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ctnet_nnunet.trainers.pretrain_data import (
    FixedBatches,
    PretrainLoader,
    has_content,
    inside_size,
    pretrain_transforms,
)

LABELS = LabelManager({"background": 0, "structure": 1}, None)


class Pool:
    """Scans on disk behind the interface of PooledDataset; all voxels of all scans differ."""

    def __init__(self, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self.identifiers = sorted(shapes)
        self.arrays: dict[str, np.ndarray] = {}
        self.folder, first = folder, 1.0
        for name, shape in shapes.items():
            array = np.arange(first, first + np.prod(shape), dtype=np.float32).reshape(shape)
            first += array.size
            self.write(name, array)

    def write(self, name: str, array: np.ndarray) -> None:
        self.arrays[name] = array.astype(np.float32)
        blosc2.asarray(self.arrays[name], urlpath=str(self.folder / f"{name}.b2nd"), mode="w")

    def load_case(self, name: str) -> tuple[Any, None, None, dict[str, Any]]:
        return blosc2.open(str(self.folder / f"{name}.b2nd"), mode="r"), None, None, {}


def loader_of(
    pool: Pool, patch: tuple[int, ...], inside: tuple[int, ...], batch: int = 4, **options: Any
) -> PretrainLoader:
    values = {"transforms": None, "inside_transforms": None, **options}
    return PretrainLoader(pool, batch, patch, patch, inside, LABELS, **values)


def place_of(crop: np.ndarray, volume: np.ndarray) -> tuple[int, ...]:
    """Where a crop (C, *size) lies in a volume (C, *shape) of voxels that all differ."""
    found = np.argwhere(volume == crop.flat[0])
    assert len(found) == 1, "not a voxel of the volume"
    return tuple(int(index) for index in found[0][1:])


def cut(volume: np.ndarray, start: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    return volume[(slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path, {"a": (1, 20, 24, 22), "b": (1, 18, 30, 16)})


def test_both_views_are_exact_crops_and_inside_lies_in_augmented(pool: Pool) -> None:
    np.random.seed(0)
    loader = loader_of(pool, (16, 16, 12), (12, 12, 12))
    starts = set()
    for _ in range(10):
        batch = loader.generate_train_batch()
        for key, image, inside in zip(batch["keys"], batch["augmented"].numpy(), batch["inside"].numpy(), strict=True):
            volume = pool.arrays[key]
            at, inner = place_of(image, volume), place_of(inside, volume)
            assert np.array_equal(image, cut(volume, at, (16, 16, 12)))
            assert np.array_equal(inside, cut(volume, inner, (12, 12, 12)))
            assert inner == (at[0] + 2, at[1] + 2, at[2])  # the same centre
            starts.add((key, at))
        assert batch["usable"].tolist() == [True] * 4
        assert {name: tuple(batch[name].shape) for name in ("augmented", "inside")} == {
            "augmented": (4, 1, 16, 16, 12), "inside": (4, 1, 12, 12, 12),
        }  # fmt: skip
    assert len(starts) > 30  # 40 draws, hardly any twice
    assert {key for key, _ in starts} == {"a", "b"}


def test_every_place_can_be_drawn_up_to_the_border(tmp_path: Path) -> None:
    loader = loader_of(Pool(tmp_path, {"a": (1, 10, 8, 8)}), (8, 8, 8), (8, 8, 8))
    np.random.seed(0)
    seen = {float(image.flatten()[0]) for _ in range(20) for image in loader.generate_train_batch()["augmented"]}
    assert seen == {1.0, 65.0, 129.0}


def test_all_channels_are_cut_at_the_same_place(tmp_path: Path) -> None:
    pool = Pool(tmp_path, {"a": (3, 12, 12, 12)})
    batch = loader_of(pool, (8, 8, 8), (8, 8, 8)).generate_train_batch()
    for image in batch["inside"].numpy():
        assert np.array_equal(image, cut(pool.arrays["a"], place_of(image, pool.arrays["a"]), (8, 8, 8)))


@pytest.mark.parametrize("shape", [(1, 20, 20, 6), (1, 5, 7, 20)])
def test_a_small_scan_is_padded_in_the_middle_and_is_not_usable(shape: tuple[int, ...], tmp_path: Path) -> None:
    pool = Pool(tmp_path, {"a": shape})
    batch = loader_of(pool, (16, 16, 16), (12, 12, 12)).generate_train_batch()
    assert batch["usable"].tolist() == [False] * 4
    image = batch["augmented"][0, 0].numpy()
    filled = np.argwhere(image != 0)
    for axis, size in enumerate(shape[1:]):
        low, high = filled[:, axis].min(), filled[:, axis].max() + 1
        assert high - low == min(size, 16)
        assert abs(low - (16 - high)) <= 1


def test_padding_is_told_to_the_transforms_and_to_no_one_else(tmp_path: Path) -> None:
    told: list[torch.Tensor] = []

    def transforms(image: torch.Tensor, segmentation: torch.Tensor) -> dict[str, torch.Tensor]:
        assert image.shape[1:] == segmentation.shape[1:]
        assert torch.equal(segmentation[0] == -1, image[0] == 0)
        told.append(segmentation)
        return {"image": image, "segmentation": segmentation}

    loader_of(
        Pool(tmp_path, {"a": (1, 10, 16, 20)}), (16, 16, 16), (8, 8, 8), transforms=transforms
    ).generate_train_batch()
    assert {int(value) for segmentation in told for value in segmentation.unique()} == {-1, 0}


@pytest.mark.parametrize(("fill", "usable"), [
    (lambda array: np.zeros_like(array), False), (lambda array: np.full_like(array, 3.0), False),
    (lambda array: np.where(np.arange(16)[:, None, None] < 3, array, 0), False),  # 3 of 16 slices are not zero
    (lambda array: np.where(np.arange(16)[:, None, None] < 8, array, 0), True), (lambda array: array, True),
])  # fmt: skip
def test_empty_and_flat_scans_are_not_usable(fill: Any, usable: bool, tmp_path: Path) -> None:
    pool = Pool(tmp_path, {"a": (1, 16, 16, 16)})
    pool.write("a", fill(pool.arrays["a"]))
    batch = loader_of(pool, (16, 16, 16), (16, 16, 16), batch=2).generate_train_batch()
    assert batch["usable"].tolist() == [usable] * 2


def test_a_voxel_shows_something_if_any_channel_does() -> None:
    image = torch.zeros(2, 4, 4)
    image[0, 0] = 1.0
    assert has_content(image)
    image[0, 0, 0] = 0.0
    assert not has_content(image)
    image[1, 3, 3] = 2.0
    assert has_content(image)


def test_2d_patches_are_slices(tmp_path: Path) -> None:
    pool = Pool(tmp_path, {"a": (2, 5, 20, 24)})
    np.random.seed(0)
    batch = loader_of(pool, (16, 16), (12, 12), batch=20).generate_train_batch()
    assert tuple(batch["augmented"].shape) == (20, 2, 16, 16)
    assert tuple(batch["inside"].shape) == (20, 2, 12, 12)
    slices = set()
    for image, inside in zip(batch["augmented"].numpy(), batch["inside"].numpy(), strict=True):
        at, inner = place_of(image, pool.arrays["a"]), place_of(inside, pool.arrays["a"])
        assert np.array_equal(image[:, None], cut(pool.arrays["a"], at, (1, 16, 16)))
        assert np.array_equal(inside[:, None], cut(pool.arrays["a"], inner, (1, 12, 12)))
        assert inner[0] == at[0]
        slices.add(at[0])
    assert slices == set(range(5))


def test_inside_has_an_augmentation_of_its_own(pool: Pool) -> None:
    def brighter(image: torch.Tensor, segmentation: torch.Tensor) -> dict[str, torch.Tensor]:
        assert segmentation.shape == (1, *image.shape[1:])
        return {"image": image + 0.5, "segmentation": segmentation}

    batch = loader_of(pool, (12, 12, 12), (8, 8, 8), inside_transforms=brighter).generate_train_batch()
    assert torch.equal(batch["inside"] % 1, torch.full_like(batch["inside"], 0.5))
    assert torch.equal(batch["augmented"] % 1, torch.zeros_like(batch["augmented"]))


def test_fixed_batches_are_the_same_in_every_epoch_and_leave_the_generators_alone(pool: Pool) -> None:
    fixed = FixedBatches(loader_of(pool, (8, 8, 8), (8, 8, 8), batch=2), count=3, seed=7)
    np.random.seed(1)
    torch.manual_seed(1)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = [next(fixed) for _ in range(3)]
    np.random.rand(5)
    again = [next(fixed) for _ in range(3)]
    assert all(
        torch.equal(a["inside"], b["inside"]) and list(a["keys"]) == list(b["keys"])
        for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0]["inside"], first[1]["inside"])
    np.random.seed(1)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    next(fixed)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def pairs_of(pool: Pool, patch: tuple[int, ...], batch: int = 4, **options: Any) -> PretrainLoader:
    return loader_of(pool, patch, patch, batch, views=frozenset({"pair"}), **options)


def coordinates(shape: tuple[int, ...], folder: Path) -> Pool:
    """One scan whose channel a is the voxel's place along axis a, from 1 on, so that 0 would be padding."""
    pool = Pool(folder, {"a": (len(shape), *shape)})
    pool.write("a", np.stack(np.meshgrid(*(np.arange(1.0, size + 1) for size in shape), indexing="ij")))
    return pool


@pytest.mark.parametrize(("patch", "shape"), [((12, 10, 8), (40, 30, 24)), ((12, 10), (5, 40, 30))])
def test_the_two_sub_volumes_are_parts_of_0_7_to_1_5_patches_each_flipped_at_random(
    patch: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Channels are coordinates: where a part lies, how long it is and which way it runs can be read off them."""
    np.random.seed(0)
    dimensions = len(patch)
    batch = pairs_of(coordinates(shape, tmp_path), patch, 60).generate_train_batch()
    pair = batch["pair"]
    assert tuple(pair.shape) == (60, 2, len(shape), *patch) and set(batch) == {"pair", "keys"}
    assert pair.min() > 0.99, "padded"
    if dimensions == 2:
        planes = pair[:, :, 0].flatten(2)
        torch.testing.assert_close(planes, planes[..., :1].round().expand_as(planes))
        assert set(planes[..., 0].round().flatten().tolist()) == {1, 2, 3, 4, 5}
    for axis, size in enumerate(patch):
        along = pair[:, :, len(shape) - dimensions + axis].movedim(2 + axis, -1).flatten(2, -2)
        torch.testing.assert_close(along, along[:, :, :1].expand_as(along))  # each line along the axis is the same
        steps = along[:, :, 0].diff(dim=-1)
        inner = steps[..., size // 2]
        assert 0.2 < (inner < 0).float().mean() < 0.8
        assert 0.1 < ((inner < 0)[:, 0] != (inner < 0)[:, 1]).float().mean() < 0.9, "flipped together"
        lengths = (inner.abs() * size).round()
        assert lengths.min() >= int(0.7 * size) and lengths.max() <= int(1.5 * size)
        assert lengths.max() - lengths.min() > 0.4 * size
        assert (lengths[:, 0] != lengths[:, 1]).float().mean() > 0.5, "scaled together"


def test_both_sub_volumes_are_of_one_scan_and_a_small_scan_is_stretched_not_padded(tmp_path: Path) -> None:
    pool = Pool(tmp_path, {"a": (1, 30, 30, 30), "b": (1, 6, 40, 20)})
    pool.write("a", np.full((1, 30, 30, 30), 1.0))
    pool.write("b", np.full((1, 6, 40, 20), 2.0))
    np.random.seed(0)
    batch = pairs_of(pool, (16, 16, 16), 30).generate_train_batch()
    expected = torch.tensor([1.0 if key == "a" else 2.0 for key in batch["keys"]])
    assert set(batch["keys"]) == {"a", "b"}
    torch.testing.assert_close(batch["pair"], expected.view(-1, 1, 1, 1, 1, 1).expand_as(batch["pair"]))


def test_fixed_batches_of_pairs_are_the_same_in_every_epoch(pool: Pool) -> None:
    fixed = FixedBatches(pairs_of(pool, (8, 8, 8), 2), count=2, seed=7)
    first = [next(fixed) for _ in range(2)]
    np.random.rand(5)
    again = [next(fixed) for _ in range(2)]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["pair"], other["pair"]) and list(one["keys"]) == list(other["keys"])
    assert not torch.equal(first[0]["pair"], first[1]["pair"])


@pytest.mark.parametrize(("scans", "batch"), [(2, 2), (5, 4), (2, 4), (3, 5)])
def test_neighbours_that_are_fused_are_different_scans(scans: int, batch: int, tmp_path: Path) -> None:
    """A sample's background is the sample before it in the batch."""
    pool = Pool(tmp_path, {f"scan{index}": (1, 4, 4, 4) for index in range(scans)})
    loader = pairs_of(pool, (4, 4, 4), batch, different=True)
    seen = set()
    np.random.seed(0)
    for _ in range(50):
        keys = list(loader.get_indices())
        assert len(keys) == batch and all(keys[index] != keys[index - 1] for index in range(batch))
        seen |= set(keys)
    assert seen == set(pool.identifiers)
    assert set(pairs_of(Pool(tmp_path, {"one": (1, 4, 4, 4)}), (4, 4, 4), 2, different=True).get_indices()) == {"one"}


@pytest.mark.parametrize(("shapes", "patch", "stride", "expected"), [
    ([(20, 24, 22), (18, 30, 16)], (16, 16, 16), (4, 4, 4), (16, 16, 16)),
    ([(20, 24, 22), (14, 30, 10)], (16, 16, 16), (4, 4, 4), (14, 16, 10)),
    ([(20, 24, 22), (3, 30, 30)], (16, 16, 16), (4, 4, 4), (16, 16, 16)),  # below two tokens: left out
    ([(3, 3, 3)], (16, 16, 16), (4, 4, 4), (16, 16, 16)),                  # none is left: none will be usable
    ([(9, 12, 13), (7, 20, 20)], (16, 16), (4, 4), (12, 13)),              # 2d: the slices' two axes
])  # fmt: skip
def test_inside_is_what_every_scan_holds(
    shapes: list[tuple[int, ...]],
    patch: tuple[int, ...],
    stride: tuple[int, ...],
    expected: tuple[int, ...],
    tmp_path: Path,
) -> None:
    pool = Pool(tmp_path, {f"scan{index}": (1, *shape) for index, shape in enumerate(shapes)})
    assert inside_size(pool, patch, stride) == expected


@pytest.mark.parametrize(("patch", "dummy_2d"), [((32, 32, 32), False), ((8, 48, 48), True), ((64, 64), False)])
def test_the_transforms_keep_the_patch_and_mirror_nothing(patch: tuple[int, ...], dummy_2d: bool) -> None:
    initial, transforms, inside = pretrain_transforms(patch, dummy_2d, [False])
    assert all(size >= length for size, length in zip(initial, patch, strict=True))
    assert (initial[0] == patch[0]) == dummy_2d
    for steps in (transforms.transforms, inside.transforms):
        assert not [step for step in steps if isinstance(step, MirrorTransform)]
    assert not [step for step in inside.transforms if isinstance(step, SpatialTransform)]
    torch.manual_seed(0)
    image = torch.randn(1, *initial)
    made = transforms(image=image, segmentation=torch.zeros(1, *initial, dtype=torch.int16))["image"]
    assert tuple(made.shape) == (1, *patch)
    assert torch.isfinite(made).all()


def test_the_transforms_of_inside_move_nothing() -> None:
    _, _, inside = pretrain_transforms((16, 16, 16), False, None)
    image = torch.zeros(1, 16, 16, 16)
    image[0, 3:6, 8:12, 10:14] = 4.0
    seen = torch.zeros_like(image)
    torch.manual_seed(0)
    for _ in range(40):
        made = inside(image=image.clone(), segmentation=torch.zeros(1, 16, 16, 16, dtype=torch.int16))["image"]
        assert made.shape == image.shape
        seen += made / 40
    bright = np.argwhere(seen[0].numpy() > 2.0)
    assert bright.mean(0) == pytest.approx([4.0, 9.5, 11.5], abs=0.5)
