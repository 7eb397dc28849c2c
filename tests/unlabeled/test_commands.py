"""The command in real processes: exit statuses, output, two at once, and killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import blosc2
import pytest

from ctnet_nnunet.unlabeled.records import complete_cases
from tests.unlabeled.conftest import Planned
from tests.unlabeled.test_preprocess import new_scan

pytestmark = pytest.mark.timeout(500)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ctnet_nnunet.cli.main", "preprocess-unlabeled", *arguments]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def assert_all_readable(dataset: Planned, cases: list[str]) -> None:
    assert complete_cases(dataset.folder) == cases
    for case in cases:
        assert blosc2.open(str(dataset.folder / f"{case}.b2nd"))[:].std() > 0.1
        assert blosc2.open(str(dataset.folder / f"{case}_seg.b2nd"))[:].max() == 0


def test_output_and_exit_status(dataset: Planned) -> None:
    first = call("-d", "510", "-c", "3d_fullres", "-np", "2")
    assert (first.returncode, first.stderr) == (0, "")
    lines = first.stdout.splitlines()
    assert sorted(line.split()[1] for line in lines[:3]) == ["un_000:", "un_001:", "un_002:"]
    assert " left)" in lines[0]
    assert lines[-1] == f"3 preprocessed, 0 unchanged, 0 refused: {dataset.folder}"
    (dataset.images_un / "un_001_0000.nii.gz").write_bytes(b"broken")
    second = call("-d", "Dataset510_plain", "-c", "3d_fullres", "-p", "nnUNetPlans", "-np", "1")
    assert second.returncode == 1
    assert second.stderr.startswith("ctnet: refused un_001: ")
    assert second.stdout.splitlines()[-1].startswith("0 preprocessed, 2 unchanged, 1 refused")
    assert_all_readable(dataset, ["un_000", "un_002"])


@pytest.mark.parametrize("arguments", [("-d", "999", "-c", "3d_fullres"), ("-d", "510", "-c", "nothing")])
def test_user_errors_are_one_line(dataset: Planned, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("ctnet: error: ")
    assert len(result.stderr.splitlines()) == 1


def test_two_at_once(dataset: Planned) -> None:
    for index in range(3, 8):
        new_scan(dataset.images_un / f"un_{index:03d}_0000.nii.gz", seed=index)
    arguments = command("-d", "510", "-c", "3d_fullres", "-np", "1")
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [(process.returncode, output[1]) for process, output in zip(both, outputs, strict=True)] == [(0, "")] * 2
    done = sum(output[0].count(": done") for output in outputs)
    assert done == 8  # each case once: the second finds it current when it gets the lock
    assert_all_readable(dataset, [f"un_{index:03d}" for index in range(8)])


def test_killed_at_random_moments(dataset: Planned) -> None:
    """kill -9 of the command and its workers: what counts as complete is readable, and a new run completes the rest."""
    rng = random.Random(0)
    cases = [f"un_{index:03d}" for index in range(10)]
    for index, case in enumerate(cases):
        new_scan(dataset.images_un / f"{case}_0000.nii.gz", seed=index)
    for _ in range(4):
        process = subprocess.Popen(
            command("-d", "510", "-c", "3d_fullres", "-np", "1", "--force"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        process.stdout.readline()  # the first case is through; kill somewhere within the following ones
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert_all_readable(dataset, complete_cases(dataset.folder))
    assert call("-d", "510", "-c", "3d_fullres", "-np", "1").returncode == 0
    assert_all_readable(dataset, cases)
    assert not list((dataset.folder / ".partial").iterdir())


def test_help_does_not_import_torch() -> None:
    code = "import sys; import ctnet_nnunet.cli.unlabeled; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
