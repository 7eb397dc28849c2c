"""The scaling model by hand: numbers that can be followed with a pencil, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctnet_nnunet.benchmark.scaling import Cost, efficiency, least_samples, read_cost, tables
from ctnet_nnunet.errors import DataError

# A sample takes 1 s on a GPU of 1 TFLOP/s; the gradients take 1 s over a link of 1 GB/s, once in one direction.
COST = Cost("nnUNetTrainerCTNet", "nnUNetPlans 3d_fullres", 1e12, 1e9)


def test_one_gpu_loses_nothing() -> None:
    assert efficiency(COST, 2, 1, 1e12, 1e9) == (1.0, 1.0)


def test_two_gpus_by_hand() -> None:
    low, high = efficiency(COST, 2, 2, 1e12, 1e9)
    assert low == pytest.approx(2 / (2 + 1))  # 2 s of computing, 2 · ½ · 1 s of joining
    assert high == 1.0  # which the backward pass's 4/3 s hide


def test_many_gpus_join_twice_the_bytes() -> None:
    low, high = efficiency(COST, 1, 10**6, 1e12, 1e9)
    assert low == pytest.approx(1 / 3, rel=1e-5)
    assert high == pytest.approx(1 / (1 + 2 - 2 / 3), rel=1e-5)


def test_the_least_samples_are_just_enough() -> None:
    for gpus in (2, 8, 64):
        least = least_samples(COST, gpus, 1e12, 1e9, 0.8)
        assert efficiency(COST, least, gpus, 1e12, 1e9)[0] >= 0.8 - 1e-9
        assert efficiency(COST, least - 1, gpus, 1e12, 1e9)[0] < 0.8


def test_the_table_has_a_row_for_each_link() -> None:
    lines = tables([COST], 2, [2, 64], 1e12, 0.8).splitlines()
    assert "1000.0 GFLOP a sample, 1000.0 MB joined a step" in lines[0]
    gigabit = next(line for line in lines if "1 Gb/s" in line and "Ethernet, 1 Gb/s" in line)
    low, high = efficiency(COST, 2, 2, 1e12, 0.125e9)
    assert f"| {100 * low:.0f} to {100 * high:.0f} % |" in gigabit


def test_files_of_one_process_and_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    content = {"trainer": "T", "plans": "p", "flops": 4e9, "batch": 2, "joined_bytes": 8, "ranks": 2, "patch": [4, 8]}
    file.write_text(json.dumps(content))
    assert read_cost(file) == Cost("T", "p, patch 4×8", 2e9, 8.0)
    assert read_cost(file, [8, 12]) == Cost("T", "p, patch 8×12", 6e9, 8.0)
    with pytest.raises(DataError, match="measured with 2 axes"):
        read_cost(file, [8, 8, 8])
    file.write_text(json.dumps({**content, "ranks": 1}))
    with pytest.raises(DataError, match="one process"):
        read_cost(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="is no file of --measure-out"):
        read_cost(file)
