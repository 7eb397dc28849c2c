"""Whether the data that stock nnU-Net preprocessed for nnUNetPlans are those that a plan of ours needs."""

from __future__ import annotations

import json
from typing import Any

from nnunetv2.utilities.json_export import recursive_fix_for_json_export

STOCK_PLANS = "nnUNetPlans"
# What decides the preprocessed voxels: equal values mean that stock preprocessed data can be used as they are.
PREPROCESSING_KEYS = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip
PREPROCESSING_KEYS_OF_THE_FILE = (
    "transpose_forward", "foreground_intensity_properties_per_channel", "image_reader_writer",
)  # fmt: skip


def same_preprocessing(plans: dict[str, Any], configuration: dict[str, Any], stock: dict[str, Any], name: str) -> bool:
    """Whether a configuration preprocesses to the same voxels as the one of that name in stock's plans."""
    other = stock["configurations"].get(name)
    if other is None or other.get("data_identifier") != f"{STOCK_PLANS}_{name}":
        return False
    ours = [configuration.get(key) for key in PREPROCESSING_KEYS]
    theirs = [other.get(key) for key in PREPROCESSING_KEYS]
    ours += [plans.get(key) for key in PREPROCESSING_KEYS_OF_THE_FILE]
    theirs += [stock.get(key) for key in PREPROCESSING_KEYS_OF_THE_FILE]
    # Through JSON, because one side was just planned (tuples, numpy) and the other read from a file.
    return bool(json.dumps(_plain(ours)) == json.dumps(_plain(theirs)))


def _plain(values: list[Any]) -> list[Any]:
    wrapped = {"values": values}
    recursive_fix_for_json_export(wrapped)
    return wrapped["values"]
