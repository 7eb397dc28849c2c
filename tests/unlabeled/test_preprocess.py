"""Preprocessing of imagesUn: equal to the stock preprocessor, repeated only where needed, whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.unlabeled.case import Outcome
from ctnet_nnunet.unlabeled.preprocess import Summary, preprocess_unlabeled
from tests.synthetic import SHAPE, write_image
from tests.unlabeled.conftest import Planned

CASES = ["un_000", "un_001", "un_002"]


def run(dataset: Planned, **options: object) -> Summary:
    return preprocess_unlabeled(dataset.id, dataset.configuration, processes=0, **options)  # type: ignore[arg-type]


def new_scan(path: Path, seed: int = 99, shape: tuple[int, ...] = SHAPE) -> None:
    write_image(path, np.random.default_rng(seed).normal(5, 1, shape).astype(np.float32))


def files_of(folder: Path, case: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(case))


@pytest.mark.parametrize("variant", ["plain", "two_channels", "ignore_regions", "ignore", "two_d", "anisotropic"])
def test_equals_the_stock_preprocessor(copy_of: Callable[[str], Planned], variant: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset = copy_of(variant)
    assert run(dataset).done == CASES
    plans = PlansManager(str(dataset.plans_file))
    configuration = plans.get_configuration(dataset.configuration)
    files = sorted(str(path) for path in dataset.images_un.glob("un_001_*"))
    data, seg, properties = configuration.preprocessor_class(verbose=False).run_case(
        files, None, plans, configuration, str(dataset.preprocessed / "dataset.json")
    )
    np.testing.assert_array_equal(blosc2.open(str(dataset.folder / "un_001.b2nd"))[:], data)
    np.testing.assert_array_equal(blosc2.open(str(dataset.folder / "un_001_seg.b2nd"))[:], seg)
    assert set(np.unique(seg)) <= {-1, 0}
    ours = pickle.loads((dataset.folder / "un_001.pkl").read_bytes())
    labelled = pickle.loads((dataset.labelled_folder / "tr_000.pkl").read_bytes())
    assert ours["class_locations"] == {key: [] for key in labelled["class_locations"]}
    assert ours["shape_before_cropping"] == properties["shape_before_cropping"]
    if variant == "anisotropic":
        assert plans.transpose_forward != [0, 1, 2]


def test_second_run_does_nothing(dataset: Planned) -> None:
    run(dataset)
    before = {path: path.stat().st_mtime_ns for path in dataset.folder.glob("un_*")}
    seen: list[tuple[Outcome, int, int]] = []
    summary = run(dataset, progress=lambda *call: seen.append(call))
    assert (summary.done, summary.unchanged, summary.failed, summary.exit_status) == ([], CASES, {}, 0)
    assert {path: path.stat().st_mtime_ns for path in dataset.folder.glob("un_*")} == before
    assert [(outcome.status, through, total) for outcome, through, total in seen] == [
        ("unchanged", n, 3) for n in (1, 2, 3)
    ]


def test_force_redoes(dataset: Planned) -> None:
    run(dataset)
    assert run(dataset, force=True).done == CASES


def test_only_a_changed_scan_is_redone(dataset: Planned) -> None:
    run(dataset)
    os.utime(dataset.images_un / "un_000_0000.nii.gz", (1, 1))  # touched, same content
    new_scan(dataset.images_un / "un_001_0000.nii.gz")
    summary = run(dataset)
    assert (summary.done, summary.unchanged) == (["un_001"], ["un_000", "un_002"])


def test_other_content_of_equal_size_is_seen(dataset: Planned) -> None:
    scan = dataset.images_un / "un_000_0000.nii.gz"
    run(dataset)
    raw = scan.read_bytes()
    new_scan(scan, seed=1)
    scan.write_bytes(scan.read_bytes()[: len(raw)].ljust(len(raw), b"\0"))  # other content, same size
    assert run(dataset).unchanged == ["un_001", "un_002"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"spacing": [1.5, 1.5, 1.5]}, CASES),
        ({"normalization_schemes": ["RescaleTo01Normalization"]}, CASES),
        ({"patch_size": [16, 16, 16], "batch_size": 3}, []),
    ],
)
def test_only_what_the_plan_says_about_preprocessing_counts(dataset: Planned, change: dict, redone: list[str]) -> None:
    run(dataset)
    dataset.change_configuration(**change)
    assert run(dataset).done == redone


@pytest.mark.parametrize("damage", ["missing data", "short data", "no record", "record of nonsense"])
def test_damaged_output_is_redone(dataset: Planned, damage: str) -> None:
    run(dataset)
    data, record = dataset.folder / "un_000.b2nd", dataset.folder / "un_000.json"
    if damage == "missing data":
        data.unlink()
    elif damage == "short data":
        data.write_bytes(data.read_bytes()[:-10])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[1, 2")
    assert run(dataset).done == ["un_000"]


def test_removed_scans_go_out_of_use(dataset: Planned) -> None:
    run(dataset)
    (dataset.images_un / "un_001_0000.nii.gz").unlink()
    summary = run(dataset)
    assert (summary.removed, summary.exit_status) == (["un_001"], 0)
    assert files_of(dataset.folder, "un_001") == []
    for scan in dataset.images_un.iterdir():
        scan.unlink()
    with pytest.raises(DataError, match=r"imagesUn is empty; put scans there"):
        run(dataset)
    assert files_of(dataset.folder, "un_") == []


def test_missing_raw_folder_keeps_what_is_preprocessed(dataset: Planned) -> None:
    """On a training machine the raw scans may not be there; that is no reason to delete their products."""
    run(dataset)
    dataset.images_un.rename(dataset.raw / "elsewhere")
    with pytest.raises(DataError, match="imagesUn does not exist"):
        run(dataset)
    assert files_of(dataset.folder, "un_000")


def test_a_scan_that_breaks_later_goes_out_of_use(dataset: Planned) -> None:
    run(dataset)
    scan = dataset.images_un / "un_002_0000.nii.gz"
    scan.write_bytes(scan.read_bytes()[:500])
    summary = run(dataset)
    assert list(summary.failed) == ["un_002"]
    assert summary.exit_status == 1
    assert files_of(dataset.folder, "un_002") == []
    assert not list((dataset.folder / ".partial").iterdir())


def test_absurd_spacing_is_refused_before_resampling(dataset: Planned) -> None:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_image(dataset.images_un / "un_000_0000.nii.gz", array, (1000, 1000, 1000))
    summary = run(dataset)
    assert "would resample to" in summary.failed["un_000"]
    assert summary.done == ["un_001", "un_002"]


def test_limit_of_voxels(dataset: Planned) -> None:
    summary = run(dataset, max_voxels=1000)
    assert set(summary.failed) == set(CASES)
    assert "above the limit of 1000" in summary.failed["un_000"]


def test_nothing_is_printed(dataset: Planned, capfd: pytest.CaptureFixture[str]) -> None:
    run(dataset)
    assert capfd.readouterr() == ("", "")


def test_full_disk_leaves_nothing_half_written(dataset: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    import nnunetv2.training.dataloading.nnunet_dataset as stock

    def fail_midway(data, seg, properties, truncated, **_):  # type: ignore[no-untyped-def]
        Path(f"{truncated}.b2nd").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stock.nnUNetDatasetBlosc2, "save_case", staticmethod(fail_midway))
    summary = run(dataset)
    assert "No space left on device" in summary.failed["un_000"]
    assert files_of(dataset.folder, "un_") == []
