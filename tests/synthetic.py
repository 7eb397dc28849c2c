"""Tiny datasets that nnU-Net accepts and that a small network learns in a few hundred steps.

A case is an ellipsoid ("head") of noise on a background of exact zeros, with one bright blob per structure. Blob i has
its own brightness and its own place; a structure named ``left …`` lies mirrored to ``right …``, so that only the
side tells the two apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest import mock

import numpy as np
import SimpleITK as sitk

from tests.pools_of_threads import pools_of_threads

SHAPE = (20, 28, 24)
SPACING = (1.0, 1.0, 1.0)


def make_dataset(
    root: Path,
    dataset_id: int,
    name: str,
    n_labelled: int,
    n_unlabelled: int,
    *,
    channels: int = 1,
    labels: Sequence[str] = ("left blob", "right blob"),
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    seed: int = 0,
    ignore: bool = False,
    regions: bool = False,
    two_d: bool = False,
    n_test: int = 0,
) -> Path:
    """Write ``root/DatasetXXX_name`` with imagesTr, labelsTr, imagesUn, imagesTs and dataset.json.

    Args:
        root: the nnUNet_raw folder.
        labels: the foreground structures, in the order of their values 1..n.
        shape, spacing: array axes (z, y, x), spacing in mm; ``two_d`` takes the last two.
        ignore: adds the label ``ignore`` (n+1) over the last eighth of the first axis.
        regions: declares overlapping regions: ``whole`` (all structures) and each structure but the first.

    Returns:
        The dataset's folder. Cases are ``tr_000``, ``un_000``, ``ts_000``, …
    """
    folder = root / f"Dataset{dataset_id:03d}_{name}"
    rng = np.random.default_rng(seed)
    shape, spacing = (tuple(shape)[-2:], tuple(spacing)[-2:]) if two_d else (tuple(shape), tuple(spacing))
    counts = {"Tr": n_labelled, "Un": n_unlabelled, "Ts": n_test}
    for part, count in counts.items():
        for index in range(count):
            images, label = make_case(rng, shape, labels, channels)
            if ignore:
                label[: max(1, shape[0] // 8)] = len(labels) + 1
            case = f"{part.lower()}_{index:03d}"
            for channel, image in enumerate(images):
                write_image(folder / f"images{part}" / f"{case}_{channel:04d}.nii.gz", image, spacing)
            if part == "Tr":
                write_image(folder / "labelsTr" / f"{case}.nii.gz", label, spacing)
    write_dataset_json(folder, n_labelled, channels, labels, ignore, regions)
    return folder


def make_case(
    rng: np.random.Generator, shape: Sequence[int], labels: Sequence[str], channels: int = 1
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return ``channels`` float32 images and one uint8 label map, each of ``shape``."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    head = sum(axis**2 for axis in grid) <= 1.05
    label = np.zeros(shape, np.uint8)
    brightness = np.zeros(shape, np.float32)
    for index, name in enumerate(labels):
        centre = _place(index, name, len(labels), len(shape)) + rng.uniform(-0.07, 0.07, len(shape))
        radius = rng.uniform(0.24, 0.3)
        blob = sum(((axis - c) / radius) ** 2 for axis, c in zip(grid, centre, strict=True)) <= 1
        label[blob] = index + 1
        brightness[blob] = 3.0 if name.startswith(("left", "right")) else 3.0 + 1.5 * index
    noise = rng.normal(4, 0.5, (channels, *shape))
    images = [np.where(head, noise[c] + brightness * (-0.5) ** c, 0).astype(np.float32) for c in range(channels)]
    return images, label


def _place(index: int, name: str, count: int, dimensions: int) -> np.ndarray:
    """Centre of a structure in [-1, 1] per axis; +x is the patient's left (the LPS frame of SimpleITK)."""
    centre = np.zeros(dimensions)
    if name.startswith(("left", "right")):
        centre[-1] = 0.45 if name.startswith("left") else -0.45
        centre[-2] = 0.4 * (index // 2) - 0.1
        return centre
    angle = 2 * np.pi * index / max(count, 2)
    centre[-2:] = 0.45 * np.cos(angle), 0.45 * np.sin(angle)
    return centre


def write_image(path: Path, array: np.ndarray, spacing: Sequence[float] = SPACING) -> None:
    """Write an array (z, y, x) with its spacing (z, y, x) in mm and an identity direction."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(list(spacing))])
    sitk.WriteImage(image, str(path), True)


def write_dataset_json(
    folder: Path, n_labelled: int, channels: int, labels: Sequence[str], ignore: bool, regions: bool
) -> None:
    """Write dataset.json, with regions and the ignore label where asked for."""
    values: dict[str, int | list[int]] = {name: index + 1 for index, name in enumerate(labels)}
    content: dict[str, object] = {}
    if regions:
        first = next(iter(values))
        values = {"whole": list(range(1, len(labels) + 1)), **{k: v for k, v in values.items() if k != first}}
        content["regions_class_order"] = list(range(1, len(labels) + 1))
    if ignore:
        values["ignore"] = len(labels) + 1
    content |= {
        "channel_names": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"background": 0, **values},
        "numTraining": n_labelled,
        "file_ending": ".nii.gz",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))


def plan_and_preprocess(
    dataset_id: int,
    configurations: Sequence[str] = ("3d_fullres",),
    *,
    planner: str = "ExperimentPlanner",
    plans_name: str | None = None,
    features: int | None = 4,
) -> Path:
    """Run nnU-Net's fingerprint, planning and preprocessing in this process; return the preprocessed dataset's folder.

    Threads replace nnU-Net's worker processes, each of which would import torch first (seconds), and the twelve that it
    forks for a list of file names; intensities are sampled at 10⁵ voxels, not 10⁸. ``features`` caps a plan;
    the first stage gets that many features, doubling up to four times as many; None leaves it alone.
    """
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

    # The planner hands nnUNet_n_proc_DA to torch.set_num_threads, which refuses 0.
    one_thread = mock.patch.dict(os.environ, nnUNet_n_proc_DA="1")
    names = mock.patch("nnunetv2.utilities.utils.Pool", ThreadPool)
    with one_thread, pools_of_threads(), names:
        _fingerprint(dataset_id)
        name = api.plan_experiments([dataset_id], planner, overwrite_plans_name=plans_name)
        folder = Path(nnUNet_preprocessed) / convert_id_to_dataset_name(dataset_id)
        if features is not None:
            shrink_network(folder / f"{name}.json", features)
        api.preprocess([dataset_id], name, list(configurations), [1], show_progress_bar=False)
    return folder


def _fingerprint(dataset_id: int) -> None:
    """Stock's, of fewer voxels."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    extractor = DatasetFingerprintExtractor(dataset_id, num_processes=1)
    extractor.show_progress_bar, extractor.num_foreground_voxels_for_intensitystats = False, 1e5
    extractor.run(overwrite_existing=True)


def shrink_network(plans_file: Path, features: int) -> None:
    """Give every configuration of a plans file a network of few features and batch size 2."""
    plans = json.loads(plans_file.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            kwargs = configuration["architecture"]["arch_kwargs"]
            kwargs["features_per_stage"] = [features * min(2**i, 4) for i in range(kwargs["n_stages"])]
            configuration["batch_size"] = 2
    plans_file.write_text(json.dumps(plans, indent=1))
