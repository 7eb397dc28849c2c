"""The pool: images of both kinds through nnU-Net's own loader, labels never touched, nobody's validation case."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.unlabeled.dataset import (
    PooledDataset,
    check_unlabeled_folder,
    unlabeled_folder,
    unlabeled_identifiers,
)
from tests.unlabeled.conftest import Planned
from tests.unlabeled.test_preprocess import run

COMMAND = "ctnet preprocess-unlabeled -d 510 -c 3d_fullres"


@pytest.fixture
def ready(dataset: Planned) -> Planned:
    run(dataset)
    return dataset


def stock_loader(dataset: Planned, data: object, oversample: float):  # type: ignore[no-untyped-def]
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(dataset.plans_file))
    patch = [size + 6 for size in plans.get_configuration(dataset.configuration).patch_size]
    labels = plans.get_label_manager(_json(dataset))
    return nnUNetDataLoader(data, 4, patch, patch, labels, oversample)


def _json(dataset: Planned) -> dict:
    import json

    return json.loads((dataset.preprocessed / "dataset.json").read_text())


@pytest.mark.parametrize("variant", ["plain", "two_channels", "ignore_regions", "ignore", "two_d", "anisotropic"])
@pytest.mark.parametrize("oversample", [0.0, 1.0])
def test_stock_loader(copy_of: Callable[[str], Planned], variant: str, oversample: float) -> None:
    """The stock loader accepts the pool, and the unlabelled folder by itself, for every kind of labels."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    dataset = copy_of(variant)
    run(dataset)
    pool = PooledDataset(dataset.labelled_folder, ["tr_000", "tr_002"], dataset.folder)
    assert pool.identifiers == ["tr_000", "tr_002", "un_000", "un_001", "un_002"]
    keys = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "No annotated pixels in image!" where a dataset has an ignore label
        loader = stock_loader(dataset, pool, oversample)
        for _ in range(12):
            batch = next(loader)
            keys |= set(batch["keys"])
            assert set(np.unique(batch["target"])) == {-1, 0}
            outside = (batch["target"] < 0).expand_as(batch["data"])
            assert float(batch["data"][outside].abs().max()) == 0  # -1 is padding and nothing else
        assert keys == set(pool.identifiers)
        alone = stock_loader(dataset, nnUNetDatasetBlosc2(str(dataset.folder)), oversample)
        assert next(alone)["data"].shape == batch["data"].shape


def test_labels_are_never_opened(ready: Planned) -> None:
    pool = PooledDataset(ready.labelled_folder, ["tr_000", "tr_001"], ready.folder)

    def draw() -> list[np.ndarray]:
        np.random.seed(0)
        loader = stock_loader(ready, pool, 0.5)
        return [value for _ in range(4) for batch in [next(loader)] for value in (batch["data"], batch["target"])]

    before = draw()
    for path in (*ready.labelled_folder.glob("*_seg.b2nd"), *ready.folder.glob("*_seg.b2nd")):
        path.unlink()
    for path in (*ready.labelled_folder.glob("*.pkl"), *ready.folder.glob("*.pkl")):
        path.write_bytes(b"poison")
    for path in (ready.preprocessed / "gt_segmentations").glob("*"):
        path.write_bytes(b"poison")
    for a, b in zip(before, draw(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_segmentation_takes_no_memory(ready: Planned) -> None:
    pool = PooledDataset(ready.labelled_folder, ["tr_000"], ready.folder)
    data, seg, previous, properties = pool.load_case("tr_000")
    assert seg.shape == (1, *data.shape[1:])
    assert set(seg.strides) == {0}
    assert previous is None
    assert properties["class_locations"][(-1, 0, 1)] == []
    assert list(properties["class_locations"]) == []


def test_pickles(ready: Planned) -> None:
    pool = pickle.loads(pickle.dumps(PooledDataset(ready.labelled_folder, ["tr_000"], ready.folder)))
    data, _, _, properties = pool["un_001"]
    assert data.ndim == 4
    assert pickle.loads(pickle.dumps(properties))["class_locations"][5] == []


def test_either_part_alone(ready: Planned, tmp_path: Path) -> None:
    assert PooledDataset(ready.labelled_folder, [], ready.folder).identifiers == ["un_000", "un_001", "un_002"]
    assert PooledDataset(ready.labelled_folder, ["tr_001"], tmp_path / "none").identifiers == ["tr_001"]
    with pytest.raises(DataError, match="put scans in imagesUn and run ctnet preprocess-unlabeled, or"):
        PooledDataset(ready.labelled_folder, [], tmp_path / "none")


def test_incomplete_scans_are_not_drawn(ready: Planned) -> None:
    (ready.folder / "un_001.json").unlink()
    assert unlabeled_identifiers(ready.folder) == ["un_000", "un_002"]
    assert PooledDataset(ready.labelled_folder, [], ready.folder).unlabeled_identifiers == ["un_000", "un_002"]


@pytest.mark.parametrize("training_keys", [["tr_000", "un_001"], ["tr_000"]])
def test_a_scan_that_was_labelled_since(ready: Planned, training_keys: list[str]) -> None:
    """Also when the fold does not train on it: then it may be the fold's validation case."""
    for path in ready.folder.glob("un_001*.b2nd"):
        (ready.labelled_folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"un_001 in .* is also labelled; remove the scans"):
        PooledDataset(ready.labelled_folder, training_keys, ready.folder)


def test_missing_training_case(ready: Planned) -> None:
    with pytest.raises(DataError, match=r"1 training cases are not preprocessed.*first: tr_009"):
        PooledDataset(ready.labelled_folder, ["tr_000", "tr_009"], ready.folder)


def test_a_pool_is_read_only(ready: Planned) -> None:
    with pytest.raises(TypeError, match="read only"):
        PooledDataset(ready.labelled_folder, ["tr_000"], ready.folder).save_case(None, None, {}, "x")


def test_folder_of_other_plans(ready: Planned) -> None:
    plans = ready.plans()
    block = plans["configurations"]["3d_fullres"]
    folder = unlabeled_folder(ready.preprocessed, block["data_identifier"])
    assert folder == ready.folder
    check_unlabeled_folder(folder, plans, block, COMMAND, ready.raw)
    check_unlabeled_folder(folder, plans, block | {"patch_size": [8, 8, 8]}, COMMAND, ready.raw)
    with pytest.raises(DataError, match=rf"3 of 3 scans in .* other plans \(first: un_000\); run {COMMAND}"):
        check_unlabeled_folder(folder, plans, block | {"spacing": [2.0, 1.0, 1.0]}, COMMAND, ready.raw)


def test_forgotten_preprocessing(dataset: Planned) -> None:
    plans = dataset.plans()
    block = plans["configurations"]["3d_fullres"]
    with pytest.raises(DataError, match=f"are not preprocessed; run {COMMAND}"):
        check_unlabeled_folder(dataset.folder, plans, block, COMMAND, dataset.raw)
    check_unlabeled_folder(dataset.folder, plans, block, COMMAND)
    for scan in dataset.images_un.iterdir():
        scan.unlink()
    check_unlabeled_folder(dataset.folder, plans, block, COMMAND, dataset.raw)
