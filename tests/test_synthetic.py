"""The dataset maker itself: nnU-Net plans and preprocesses every variant that it offers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from tests.conftest import NnunetEnv
from tests.synthetic import make_dataset, plan_and_preprocess


@pytest.mark.parametrize(
    ("options", "configuration", "n_channels"),
    [
        ({}, "3d_fullres", 1),
        ({"channels": 2}, "3d_fullres", 2),
        ({"ignore": True, "regions": True, "labels": ("a", "b")}, "3d_fullres", 1),
        ({"two_d": True}, "2d", 1),
    ],
)
def test_nnunet_accepts(fresh_nnunet_env: NnunetEnv, options: dict, configuration: str, n_channels: int) -> None:
    import blosc2

    make_dataset(fresh_nnunet_env.raw, 901, "Maker", 2, 1, **options)
    folder = plan_and_preprocess(901, [configuration])
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    block = plans["configurations"][configuration]
    case = blosc2.open(str(folder / block["data_identifier"] / "tr_000.b2nd"))
    assert case.shape[0] == n_channels
    assert block["architecture"]["arch_kwargs"]["features_per_stage"][0] == 4
    assert not list(folder.rglob("un_000*"))


def test_left_lies_at_positive_x(fresh_nnunet_env: NnunetEnv) -> None:
    folder = make_dataset(fresh_nnunet_env.raw, 902, "Sides", 1, 0)
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / "tr_000.nii.gz")))
    left, right = (np.argwhere(label == value)[:, -1].mean() for value in (1, 2))
    assert left > right
