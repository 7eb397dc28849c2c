"""The main job, done once by real commands; what they left is looked at by several tests."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import NnunetEnv
from tests.end_to_end.commands import BIN, Finished, environment, run
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny, prepare, settings
from tests.synthetic import make_dataset

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass
class MainJob:
    """What every command of the main job printed, and where its results lie."""

    tiny: Tiny
    predictions: Path
    killed_at_start: Path
    finished: dict[str, Finished] = field(default_factory=dict)


@pytest.fixture(scope="session")
def main_job(nnunet_env: NnunetEnv, tmp_path_factory: pytest.TempPathFactory) -> MainJob:
    """From raw scans to an ensemble's predictions, each line as a user types it."""
    folder = tmp_path_factory.mktemp("main_job")
    tiny = Tiny(nnunet_env, 600, "Main")
    make_dataset(nnunet_env.raw, tiny.id, tiny.name, n_labelled=5, n_unlabelled=3, n_test=2)
    job = MainJob(tiny, folder / "out", folder / "killed.pth")
    dataset = ("-d", tiny.id, "-c", tiny.configuration)
    weights = ("-pretrained_weights", tiny.pretrained())

    def do(name: str, *words: str | Path | int, **extra: str) -> None:
        job.finished[name] = run(nnunet_env, *words, **extra).succeeded()

    # Stock planning hands nnUNet_n_proc_DA to torch, which refuses 0.
    do("preprocess", "nnUNetv2_plan_and_preprocess", *dataset, "-npfp", 1, "-np", 1, nnUNet_n_proc_DA="1")
    do("plan", "ctnet", "plan", *dataset, "--preset", "s", *settings((16, 24, 24)))
    do("unlabeled", "ctnet", "preprocess-unlabeled", *dataset, "-p", tiny.plans, "-np", 0)
    do("pretrain", *tiny.train("all", PRETRAINER))
    do("fold 0", *tiny.train(0, TRAINER, *weights))
    kill_when_started(nnunet_env, tiny.fold(1), *map(str, tiny.train(1, TRAINER, *weights)))
    shutil.copy(tiny.fold(1) / "checkpoint_latest.pth", job.killed_at_start)
    do("fold 1, continued", *tiny.train(1, TRAINER, "--c"))
    do("predict", *tiny.predict(tiny.raw / "imagesTs", job.predictions, [0, 1]))
    return job


def kill_when_started(env: NnunetEnv, fold: Path, *command: str) -> None:
    """Start a training and kill it as soon as its first checkpoint is there, which holds the network at its start."""
    words, silent = [str(BIN / command[0]), *command[1:]], subprocess.DEVNULL
    process = subprocess.Popen(words, env=environment(env), stdout=silent, stderr=silent)
    for _ in range(6000):
        if (fold / "checkpoint_latest.pth").is_file() or process.poll() is not None:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9, "the training ended before it could be killed"


@pytest.fixture(scope="session")
def planned_tiny(nnunet_env: NnunetEnv) -> Tiny:
    """A planned and preprocessed dataset with unlabelled scans; not to be changed."""
    return prepare(nnunet_env, 640, "Planned")


@pytest.fixture
def copy_of_planned(planned_tiny: Tiny, fresh_nnunet_env: NnunetEnv) -> Tiny:
    """A copy in folders of this test alone, to be changed at will."""
    for root in FOLDERS[:2]:
        source = planned_tiny.env.root / root / planned_tiny.dataset
        shutil.copytree(source, fresh_nnunet_env.root / root / planned_tiny.dataset)
    return Tiny(fresh_nnunet_env, planned_tiny.id, planned_tiny.name)


@pytest.fixture
def files_below() -> Callable[[Path], dict[Path, bytes]]:
    """Every file below a folder with its content, to show that nothing was half-written."""
    return lambda folder: {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
