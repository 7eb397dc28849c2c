"""A converted dataset in nnU-Net's own hands: planned, preprocessed, with our folds and our sides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.conversion.sources.nifti import list_pairs
from tests.conftest import NnunetEnv
from tests.conversion.fakes import run, write
from tests.synthetic import make_case, plan_and_preprocess


def test_nnunet_plans_preprocesses_and_takes_the_folds(tmp_path: Path, nnunet_env: NnunetEnv) -> None:
    rng = np.random.default_rng(3)
    for index in range(6):
        images, label = make_case(rng, (20, 28, 24), ("left blob", "right blob"))
        for array, folder in ((images[0], "images"), (label * 10, "labels")):
            write(sitk.GetImageFromArray(array), tmp_path / f"{folder}/p{index // 2}_v{index % 2}.nii.gz")
    listing = list_pairs(tmp_path / "images", tmp_path / "labels", ["MR"])
    options = {"label_map": "10=left blob,20=right blob", "patient_pattern": "(p[0-9]+)", "name": "Converted"}
    report = run(listing, nnunet_env.raw, dataset_id=871, **options)
    assert report.exit_status == 0
    folder = plan_and_preprocess(871)
    written = json.loads((nnunet_env.raw / "Dataset871_Converted/splits_final.json").read_text())
    assert json.loads((folder / "splits_final.json").read_text()) == written
    assert sorted(sorted(split["val"]) for split in written) == [[f"p{n}_v0", f"p{n}_v1"] for n in range(3)]
    preprocessed = {path.name.split(".")[0] for path in (folder / "nnUNetPlans_3d_fullres").glob("*.b2nd")}
    assert {case.name for case in report.written} <= preprocessed
