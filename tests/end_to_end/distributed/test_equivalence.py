"""Two gloo processes with half of each batch are one process with the whole: losses, gradients, weights, log."""

from __future__ import annotations

import functools
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ctnet_nnunet.planning.changes import parse_assignments
from ctnet_nnunet.planning.write import write_plan
from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import PRELOADED, _child, environment
from tests.end_to_end.distributed.steps import CHANNELS, PATCH, RUNS, run_all
from tests.end_to_end.tiny import Tiny, settings
from tests.synthetic import make_dataset, plan_and_preprocess

SECONDS = 600


@pytest.fixture(scope="module")
def found(nnunet_env: NnunetEnv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes and one have found, for every trainer."""
    tiny = Tiny(nnunet_env, 655, "Ranks")
    make_dataset(nnunet_env.raw, tiny.id, tiny.name, 5, 2, n_test=0, seed=1, channels=CHANNELS)
    plan_and_preprocess(tiny.id, ["2d", "3d_fullres"])
    write_plan(tiny.id, "3d_fullres", "s", changes=parse_assignments(settings(PATCH["3d_fullres"])[1::2]))
    preprocess_unlabeled(tiny.id, "3d_fullres", tiny.plans, processes=0)

    folder = tmp_path_factory.mktemp("found")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    processes: list[Any] = []
    for rank in (None, 0, 1):
        work = functools.partial(run_all, rank, folder, tiny.preprocessed, list(RUNS))
        out, err = (folder / f"{rank}.{stream}" for stream in ("out", "err"))
        processes.append(server.Process(target=_child, args=(work, environment(nnunet_env), out, err)))
        processes[-1].start()
    deadline = time.monotonic() + SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            break  # the other waits for it in vain
        time.sleep(0.1)
    for process in processes:
        process.kill()
        process.join()
    return folder


def result(found: Path, name: str, rank: int | None) -> dict[str, Any]:
    file = found / f"{name}.{rank}.pt"
    assert file.is_file(), (found / f"{rank}.err").read_text()[-3000:]
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(found: Path, name: str) -> None:
    single, first, second = (result(found, name, rank) for rank in (None, 0, 1))
    for key, values in single["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], values, rtol=1e-4, atol=1e-6, msg=key)
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in single["gradients"].values())
    for key, gradient in single["gradients"].items():
        torch.testing.assert_close(first["gradients"][key], gradient, rtol=1e-3, atol=1e-6, msg=key)
    for whole, *parts in zip(single["outputs"], first["outputs"], second["outputs"], strict=True):
        for entry in (key for key in whole if key.endswith(("loss", "_a", "_b", "discriminators", "h", "_labelled"))):
            mean = sum(part[entry] for part in parts) / 2
            assert mean == pytest.approx(whole[entry], rel=1e-4, abs=1e-7, nan_ok=True), entry
    for entry, value in single["logged"].items():
        if entry == "val_losses" and RUNS[name].batch % 2:
            continue  # stock's mean of the processes' means
        assert first["logged"][entry] == pytest.approx(value, rel=1e-4), entry
    if "Reciprocal" in name:
        assert single["outputs"][0]["h"] != 0
